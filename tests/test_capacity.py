import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import capacity, sharding
from gptjax import step as steps
from gptjax.models.transformer import transformer
from gptjax.objectives.next_token import next_token
from gptjax.optim.adamw import adamw
from gptjax.words import Mistake

MODEL = transformer(preset='llama', vocab=61, layers=2, embed=16, heads=2, mlp=32)
ADAMW = adamw(lr=1e-3, steps=10, axes=MODEL.axes)


def state_bytes(mesh):
  with sharding.use(sharding.make_mesh(mesh)):
    return capacity.tree_bytes(steps.abstract_state(MODEL, ADAMW).params)


def test_virtual_devices_of_a_cpu_share_its_memory():
  shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
  whole = sum(x.size * 4 for x in jax.tree.leaves(shapes))
  assert state_bytes({'data': 8}) == 8 * whole  # A copy on each.
  assert whole <= state_bytes({'fsdp': 8}) < 2 * whole


def test_what_the_machine_has_is_known_here():
  found = capacity.machine_bytes()
  assert found is not None
  assert 10**8 < found < 10**14


def test_a_program_is_weighed_with_its_arguments_and_temporaries():
  def both(x):
    return jnp.sort(x) + jnp.cumsum(x)[::-1]

  x = jnp.ones(10_000)
  compiled = jax.jit(both).lower(x).compile()
  assert capacity.program_bytes(compiled) >= len(jax.local_devices()) * 2 * 40_000


def test_a_step_that_cannot_fit_is_refused_before_it_runs(monkeypatch):
  with sharding.use(sharding.make_mesh({'data': 8})):
    state = steps.init_state(jax.random.key(0), MODEL, ADAMW)
    batch = {k: np.ones((8, 16), np.int32) for k in ('tokens', 'targets')}
    batch = sharding.put({**batch, 'weights': np.ones((8, 16), np.float32)})
    step = jax.jit(steps.make_train_step(MODEL, next_token(), ADAMW))
    steps.check_program(step, state, batch, {}, 1e20)
    monkeypatch.setattr(capacity, 'machine_bytes', lambda: 100_000)
    with pytest.raises(Mistake, match=r'the train step cannot fit: .* has 100\.0 kB'):
      steps.check_program(step, state, batch, {}, 1e20)
    with pytest.raises(Mistake, match=r'c\.model: 7,248 parameters'):
      steps.check_state(steps.abstract_state(MODEL, ADAMW))
    with pytest.raises(Mistake, match=r'c\.batch_size=80: a batch of rows of 999 tok'):
      steps.check_batch(80, 1, 999)
    steps.check_batch(8, 1, 9)


def test_errors_of_memory_are_told_from_others():
  with pytest.raises(jax.errors.JaxRuntimeError) as caught:
    jnp.zeros(1 << 50).block_until_ready()
  size = f'{4 << 50} bytes'
  assert capacity.explain(caught.value) == f'out of memory; {size} were wanted'
  with pytest.raises(MemoryError) as caught:
    np.zeros(1 << 50)
  assert capacity.explain(caught.value) == 'out of memory; 8.00 PiB were wanted'
  assert capacity.explain(MemoryError('std::bad_alloc')) == 'out of memory'
  assert capacity.explain(ValueError('allocating 7 bytes')) is None


def test_bytes_are_shown_for_people():
  assert [capacity.shown(n) for n in (999, 1000, 25.26e9, 3e18)] == [
    *('999 bytes', '1.0 kB', '25.3 GB', '3000.0 PB')
  ]
