"""The forms for a CPU stay on a CPU; kernels for TPUs and GPUs lower from here."""

import functools

import jax
import jax.numpy as jnp
import pytest

from gptjax import sharding
from gptjax import step as steps
from gptjax.models import attention_blockwise, attention_cpu, attention_fused
from gptjax.models import linear as linears
from gptjax.models.attention import attention
from gptjax.models.transformer import transformer
from gptjax.objectives.next_token import next_token
from gptjax.optim.adamw import adamw

PLATFORMS = {'tpu': 'tpu', 'gpu': 'cuda'}  # Ours: what JAX lowers for.
KERNELS = {'tpu': 'tpu_custom_call', 'gpu': '__gpu$xla.gpu.triton'}
TRITON = ('flash_forward', 'flash_dq', 'flash_dk_dv')


@pytest.fixture
def calls(monkeypatch):
  """Names of the forms that were traced."""
  seen = set()

  def spy(module, name):
    real = getattr(module, name)

    @functools.wraps(real)
    def spied(*args, **kwargs):
      seen.add(name)
      return real(*args, **kwargs)

    monkeypatch.setattr(module, name, spied)

  spy(attention_cpu, 'triangle')
  spy(attention_cpu, 'single')
  spy(attention_blockwise, 'blockwise')
  spy(attention_fused, 'splash')
  spy(attention_fused, 'triton')
  spy(linears, '_flat')
  return seen


def lowered(function, platform, *args):
  mesh = sharding.make_mesh(dict(data=1), jax.devices()[:1])
  with sharding.use(mesh, platform=platform):
    traced = jax.jit(function).trace(*args)
    target = PLATFORMS.get(platform, platform)
    return traced.lower(lowering_platforms=(target,)).as_text()


@pytest.mark.parametrize(
  ('platform', 'wanted', 'unwanted'),
  [
    ('tpu', {'splash'}, {'triangle', 'single', 'triton', '_flat'}),
    ('gpu', {'triton'}, {'triangle', 'single', 'splash', '_flat'}),
    ('cpu', {'triangle', '_flat'}, {'splash', 'triton', 'blockwise'}),
  ],
)
def test_a_train_step_holds_the_forms_of_its_platform(
  calls, platform, wanted, unwanted
):
  mesh = sharding.make_mesh(dict(data=1), jax.devices()[:1])
  with sharding.use(mesh, platform=platform):
    model = transformer(
      vocab=65, preset='gpt2', layers=2, heads=2, embed=128, length=128, dropout=0.0,
      attention_dropout=0.0,
    )  # fmt: skip
    optimizer = adamw(lr=1e-3, steps=10, axes=model.axes)
    make = functools.partial(steps.new_state, optimizer=optimizer)
    params = jax.eval_shape(model.init, jax.random.key(0))
    state = jax.eval_shape(lambda p: make(p, key=jax.random.key(0)), params)
    ids = jax.ShapeDtypeStruct((2, 128), jnp.int32)
    weights = jax.ShapeDtypeStruct((2, 128), jnp.float32)
    batch = dict(tokens=ids, targets=ids, weights=weights, segments=ids)
    calls.clear()
    step = steps.make_train_step(model, next_token(), optimizer)
  text = lowered(step, platform, state, batch, {})
  assert wanted <= calls
  assert not unwanted & calls
  for name, kernel in KERNELS.items():
    assert (kernel in text) == (name == platform), kernel


@pytest.mark.parametrize('platform', PLATFORMS)
@pytest.mark.parametrize(
  ('window', 'softcap', 'heads', 'T'),
  [(None, None, 4, 100), (None, None, 1, 512), (64, 20.0, 2, 512)],
)
def test_attention_lowers(calls, platform, window, softcap, heads, T):
  """All features, forward and backward, at lengths that are no whole blocks too."""
  q = jax.ShapeDtypeStruct((2, T, 4, 64), jnp.bfloat16)
  k = jax.ShapeDtypeStruct((2, T, heads, 64), jnp.bfloat16)
  ids = jax.ShapeDtypeStruct((2, T), jnp.int32)

  def total(q, k, v, ids):
    out = attention(
      q, k, v, segments=(ids, ids), window=window, softcap=softcap, scale=0.125
    )
    return out.astype(jnp.float32).sum()

  text = lowered(jax.grad(total, (0, 1, 2)), platform, q, k, k, ids)
  assert KERNELS[platform] in text
  assert 'blockwise' not in calls
  if platform == 'tpu':
    return
  for name in TRITON:
    (call,) = [line for line in text.splitlines() if f'name = "{name}"' in line]
    # Keys go in as they are: not repeated for their queries, not filled up.
    assert call.count(f'tensor<2x{T}x{heads}x64xbf16>') >= 2


@pytest.mark.parametrize('platform', ['cpu', *PLATFORMS])
def test_a_step_of_decoding_reads_the_cache_plainly(calls, platform):
  q = jax.ShapeDtypeStruct((2, 1, 4, 64), jnp.float32)
  k = jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.float32)
  at = jax.ShapeDtypeStruct((2, 1), jnp.int32)

  def one(q, k, v, at):
    return attention(q, k, v, positions=at, scale=0.125)

  lowered(one, platform, q, k, k, at)
  assert calls == ({'single'} if platform == 'cpu' else set())
