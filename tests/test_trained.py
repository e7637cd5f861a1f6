"""What is trained and what stays: adapters and frozen leaves of a 2-layer model."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import origin, sharding, step, tree
from gptjax.models.transformer import transformer
from gptjax.objectives.next_token import next_token
from gptjax.trained import abstract_params, make_trained
from gptjax.words import Mistake

SIZES = dict(vocab=128, layers=2, embed=64, heads=8, kv_heads=8, mlp=80)
LORA = dict(rank=2, alpha=4.0, dropout=0.2, targets=('layers/*',), also=())
B, T = 8, 12


@functools.cache
def make_model(**more):
  return transformer(preset='llama', **SIZES, **more)


@functools.cache
def make_whole(**more):
  """Weights that matter: those of a new model are near 0."""
  return jax.tree.map(lambda x: 3 * x, make_model(**more).init(jax.random.key(0)))


def config(**changes):
  optim = dict(name='adamw', lr=1e-2, warmup=0)
  return dict(optim=optim, steps=9, init='a run', resume=None) | changes


def make_batch(seed=0):
  tokens = jax.random.randint(jax.random.key(seed), (B, T), 0, 128)
  return {
    'tokens': tokens,
    'targets': jnp.roll(tokens, -1, 1),
    'weights': jnp.ones((B, T)),
  }


def parts(model, c, microbatches=1):
  """(state, base, jitted step) on the mesh in force."""
  found = make_trained(c, model)
  optimizer = origin.make_optimizer(c, found)
  whole = jax.device_put(make_whole(), sharding.layout(make_whole(), model.axes))
  params = found.params(whole, jax.random.key(1))
  # As drawn, b is 0 and a has no gradient.
  params = jax.tree.map(lambda x: jnp.where(x == 0, 0.02, x), params)
  key = jax.random.key(2)
  state = step.init_state(key, model, optimizer, params=params, axes=found.axes)
  train_step = step.make_train_step(
    model,
    next_token(),
    optimizer,
    microbatches=microbatches,
    assemble=found.assemble,
    axes=found.axes,
  )
  return state, found.base(whole), train_step


def train(mesh, microbatches, model, c):
  """3 steps: losses, params, and the base after them."""
  sizes = dict(zip(('data', 'fsdp', 'tensor'), mesh, strict=True))
  devices = jax.devices()[: int(np.prod(mesh))]
  with sharding.use(sharding.make_mesh(sizes, devices)):
    state, base, train_step = parts(model, c, microbatches)
    train_step = jax.jit(train_step, donate_argnums=0)
    losses = []
    for seed in range(3):
      batch = sharding.put(make_batch(seed))
      state, metrics = train_step(state, batch, {'base': base})
      losses.append(float(metrics['loss'].total / metrics['loss'].count))
    return losses, jax.device_get(state.params), jax.device_get(base)


@functools.cache
def alone():
  return train((1, 1, 1), 1, make_model(), config(lora=LORA))


@pytest.mark.parametrize(
  ('mesh', 'microbatches', 'scan'),
  [((1, 1, 1), 4, False), ((2, 2, 2), 2, False), ((1, 1, 1), 1, True)],
)
def test_no_number_depends_on_the_cut_with_dropout_on(mesh, microbatches, scan):
  model = make_model(scan=scan) if scan else make_model()
  losses, params, base = train(mesh, microbatches, model, config(lora=LORA))
  truth, expected, _ = alone()
  assert len(set(truth)) == 3
  np.testing.assert_allclose(losses, truth, rtol=1e-5)
  for path, leaf in tree.paths(params).items():
    other = tree.paths(expected)[path]
    np.testing.assert_allclose(leaf, other, atol=5e-5, err_msg=path)
  assert tree.digest(base) == tree.digest(make_whole())


def test_an_adapter_drops_by_row_and_layer_and_never_without_a_key():
  model = make_model()
  found = make_trained(config(lora=LORA), model)
  params = found.params(make_whole(), jax.random.key(1))
  params = jax.tree.map(lambda x: jnp.where(x == 0, 0.1, x), params)
  base, rows = make_whole(), jnp.array([0, 1, 5])
  key = jax.random.key(3)
  whole = found.assemble(base, params, key, rows)
  keys = whole['layers']['0:2:1']['mlp']['up'].keys
  assert keys.shape == (2, 3)
  drawn = {tuple(k) for k in np.asarray(jax.random.key_data(keys)).reshape(6, -1)}
  assert len(drawn) == 6
  assert found.assemble(base, params)['layers']['0:2:1']['mlp']['up'].keys is None
  same = {'tokens': jnp.tile(make_batch()['tokens'][:1], (3, 1)), 'rows': rows}
  hidden = jax.jit(lambda whole: model.hidden(whole, same)[0])
  dropped, plain = hidden(whole), hidden(found.assemble(base, params))
  assert not np.allclose(dropped[0], dropped[1], atol=1e-3)
  np.testing.assert_allclose(plain[0], plain[1], atol=1e-5)
  again = hidden(found.assemble(base, params, key, rows[::-1]))
  np.testing.assert_allclose(again[::-1], dropped, atol=1e-5)
  other = hidden(found.assemble(base, params, jax.random.key(4), rows))
  assert not np.allclose(other, dropped, atol=1e-3)


def compiled(c):
  with sharding.use(sharding.make_mesh({'data': 1}, jax.devices()[:1])):
    state, base, train_step = parts(make_model(), c)
    batch = sharding.put(make_batch())
    frozen = {'base': base} if base else {}
    return jax.jit(train_step).lower(state, batch, frozen).compile()


def test_the_backward_pass_makes_no_gradient_of_a_frozen_product():
  full, adapted = compiled(config()), compiled(config(lora=LORA | dict(dropout=0.0)))
  shapes = {
    frozenset((int(np.prod(x.shape[1:-k])), int(np.prod(x.shape[-k:]))))
    for path, x in tree.paths(make_whole()['layers']).items()
    for k in (1, 2)
    if x.ndim > 2 and 'norm' not in path
  }

  def made(program):
    """Matrices that have the shape of a weight, made by products."""
    found = re.findall(r'= f32\[(\d+),(\d+)\]\S* dot\(', program.as_text())
    return [pair for pair in found if frozenset(map(int, pair)) in shapes]

  assert len(made(full)) >= 14  # 7 products in each of 2 layers.
  assert not made(adapted)
  flops = [program.cost_analysis()['flops'] for program in (full, adapted)]
  assert flops[1] < 0.85 * flops[0]


def test_freezing_by_pattern_leaves_the_rest_to_be_trained():
  c = config(freeze=('embed/*', 'layers/*/mlp/*'))
  losses, params, base = train((1, 2, 2), 1, make_model(), c)
  assert losses[-1] < losses[0] + 1
  frozen = set(tree.paths(base))
  assert frozen == {p for p in tree.paths(make_whole()) if 'embed' in p or '/mlp/' in p}
  assert frozen.isdisjoint(tree.paths(params))
  assert frozen | set(tree.paths(params)) == set(tree.paths(make_whole()))
  for path, leaf in tree.paths(base).items():
    np.testing.assert_array_equal(leaf, tree.paths(make_whole())[path])
  for path, leaf in tree.paths(params).items():
    assert not np.array_equal(leaf, tree.paths(make_whole())[path]), path


def test_new_heads_and_named_leaves_are_trained_beside_the_adapters():
  model = make_model(outputs=('lm', 'classes'), classes=3)
  c = config(lora=LORA | dict(targets=('query', 'down'), also=('norm',)))
  found = make_trained(c, model)
  shapes = {
    path: x.shape for path, x in tree.paths(abstract_params(model, found)).items()
  }
  assert shapes == {
    'heads/classes': (64, 3),
    'heads/classes_bias': (3,),
    'layers/0:2:1/attention/query/a': (2, 64, 2),
    'layers/0:2:1/attention/query/b': (2, 2, 8, 8),
    'layers/0:2:1/mlp/down/a': (2, 80, 2),
    'layers/0:2:1/mlp/down/b': (2, 2, 64),
    'norm/scale': (64,),
  }
  names = tree.paths(found.axes, is_leaf=lambda x: isinstance(x, tuple))
  assert {path: len(n) for path, n in names.items()} == {
    path: len(shape) for path, shape in shapes.items()
  }
  whole = found.assemble(
    make_whole(), found.params(model.init(jax.random.key(0)), jax.random.key(1))
  )
  assert 'classes' in whole['heads']


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(lora=dict(rank=-1)), r'c.lora.rank=-1: at least 1'),
    (dict(lora=dict(rnk=2)), r"c.lora takes no 'rnk': did you mean 'rank'"),
    (dict(lora=LORA | dict(dropout=1.0)), 'c.lora.dropout=1.0'),
    (dict(lora=LORA | dict(targets=('qury',))), r"\['qury'\].*down.*query"),
    (dict(lora=LORA | dict(targets=('norm*',))), r'no product .*norm'),
    (dict(lora=LORA | dict(targets='query')), r"c.lora.targets='query': a tuple"),
    (dict(lora=LORA | dict(targets=('layers/0/*',))), 'name all of them, or none'),
    (dict(lora=LORA | dict(also=('up',))), 'c.lora.also: .*mlp/up has an adapter'),
    (dict(lora=LORA | dict(also=('nothing',))), 'c.lora.also: no leaf matches'),
    (dict(lora=LORA, freeze=('embed/*',)), 'c.freeze: under c.lora'),
    (dict(lora=LORA, init=None), 'c.lora leaves .* c.init does not say whose'),
    (dict(freeze=('embed/*',), init=None), 'c.freeze leaves'),
    (dict(freeze=('*',)), 'nothing is left to be trained'),
    (dict(freeze=('layers/0/*',)), 'c.freeze splits the stacked leaf'),
    (dict(freeze=('embd/*',)), 'c.freeze: no leaf matches'),
  ],
)
def test_what_cannot_be_trained_is_said_in_one_line(changes, message):
  with pytest.raises(Mistake, match=message) as found:
    make_trained(config(**changes), make_model())
  assert '\n' not in str(found.value)


def test_muon_says_that_adapters_are_no_hidden_matrices():
  c = config(lora=LORA, optim=dict(name='muon', lr=1e-2))
  with pytest.raises(Mistake, match='take adamw'):
    origin.make_optimizer(c, make_trained(c, make_model()))


def test_rates_fall_from_layer_to_layer_of_the_adapters():
  """Layer-wise decay: the lower a layer, the less it moves."""
  model = make_model()
  rates = {'layers/0/*': 0.25, 'layers/1/*': 1.0}
  c = config(lora=LORA | dict(dropout=0.0))
  c['optim'] = dict(name='adamw', lr=1e-3, warmup=0, weight_decay=0.0, rates=rates)
  with sharding.use(sharding.make_mesh({'data': 1}, jax.devices()[:1])):
    state, base, train_step = parts(model, c)
    after, _ = jax.jit(train_step)(state, make_batch(), {'base': base})
  for path, leaf in tree.paths(after.params).items():
    moved = np.abs(leaf - tree.paths(state.params)[path]).reshape(2, -1)
    # Adam's first update is the rate itself, for every number with a gradient.
    np.testing.assert_allclose(np.median(moved, 1), [2.5e-4, 1e-3], rtol=0.02)


def test_unknown_config_keys_of_older_runs_mean_all_is_trained():
  found = make_trained({'init': None, 'resume': None}, make_model())
  assert not found.frozen
  assert jax.tree.structure(abstract_params(make_model(), found)) == (
    jax.tree.structure(make_whole())
  )
