"""The train step: independent of the cut, guarded, laid out; adapters over a base."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import lookup, sharding, step, tree
from gptjax.models import lora
from gptjax.models.dropout import dropout
from gptjax.models.linear import linear
from gptjax.objectives.next_token import next_token
from gptjax.words import Max, Mistake, Model, Sum

V, T, B = 64, 16, 16
D, H, K, R = 32, 8, 4, 2
QUERY = 'layers/0:2:1/mixer/query'


def layer(w, i):
  return jax.tree.map(lambda x: x[i], w)


def tiny():
  """Two layers that mix the past by its mean, with dropout: quick to compile."""

  def init(key):
    a, b, c = jax.random.split(key, 3)
    mixer = {
      'query': jax.random.normal(a, (R, D, H, K)) * D**-0.5,
      'out': jax.random.normal(b, (R, H, K, D)) * D**-0.5,
    }
    return {
      'embed': {'tokens': jax.random.normal(c, (V, D))},
      'layers': {'0:2:1': {'mixer': mixer}},
      'norm': {'scale': jnp.ones(D)},
    }

  axes = {
    'embed': {'tokens': ('vocab', 'embed')},
    'layers': {
      '0:2:1': {
        'mixer': {
          'query': ('layers', 'embed', 'heads', 'head'),
          'out': ('layers', 'heads', 'head', 'embed'),
        }
      }
    },
    'norm': {'scale': ('norm',)},
  }

  def hidden(params, batch, *, key=None, **_):
    x = params['embed']['tokens'][batch['tokens']]  # [B, T, D]
    mixer = params['layers']['0:2:1']['mixer']
    lengths = jnp.arange(1.0, x.shape[1] + 1).reshape(1, -1, 1, 1)
    for i in range(R):
      y = jnp.tanh(linear(x, layer(mixer['query'], i), 'BTD,DHK->BTHK'))
      y = linear(jnp.cumsum(y, 1) / lengths, layer(mixer['out'], i), 'BTHK,HKD->BTD')
      own = None if key is None else jax.random.fold_in(key, i)
      x = x + dropout(y, 0.1, own, batch.get('rows'))
    scale = params['norm']['scale'].reshape(1, 1, -1)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True)) * scale, None, {}

  def lm(params, x):
    return jnp.einsum('...D,VD->...V', x, params['embed']['tokens'])

  return Model(init, hidden, None, {'lm': lm}, axes, None)


MODEL = tiny()


def optimizer(name='adamw', axes=MODEL.axes, **options):
  options = {'lr': 1e-3, 'warmup': 2, **options}
  return lookup.make(
    'optim', dict(name=name, **options), 'c.optim', steps=10, axes=axes
  )


def batches(count=5, rows=B):
  rng = np.random.default_rng(0)
  for _ in range(count):
    text = rng.integers(0, V, (rows, T + 1))
    weights = rng.integers(0, 2, (rows, T)) * rng.random((rows, T))
    weights[rng.integers(rows)] = 0  # A row without any.
    yield {
      'tokens': text[:, :-1],
      'targets': text[:, 1:],
      'weights': weights.astype(np.float32),
    }


def train(mesh, microbatches=1, name='adamw', data=None, model=MODEL, **options):
  """5 steps: (losses, last metrics, state), in NumPy."""
  sizes = dict(zip(('data', 'fsdp', 'tensor'), mesh, strict=True))
  devices = jax.devices()[: int(np.prod(mesh))]
  with sharding.use(sharding.make_mesh(sizes, devices)):
    optim = optimizer(name, axes=model.axes, **options)
    state = step.init_state(jax.random.key(1), model, optim)
    layout = jax.tree.map(lambda x: x.sharding, state)
    objective = next_token(z_loss=1e-3)
    train_step = jax.jit(
      step.make_train_step(model, objective, optim, microbatches=microbatches),
      donate_argnums=0,
    )
    losses, metrics = [], {}
    for batch in data or batches():
      state, metrics = train_step(state, sharding.put(batch), {})
      losses.append(float(metrics['loss'].total / metrics['loss'].count))
    same = jax.tree.map(
      lambda x, where: x.sharding.is_equivalent_to(where, x.ndim), state, layout
    )
    assert all(jax.tree.leaves(same)), 'the step keeps the layout of its state'
    key = jax.random.key_data(state.key)
    return losses, jax.device_get(metrics), jax.device_get(state._replace(key=key))


@functools.cache
def make_model(kind):
  if kind == 'tiny':
    return MODEL
  sizes = dict(layers=2, embed=32, heads=8, mlp=64, dropout=0.1)
  return lookup.make('models', {'name': 'transformer', **sizes}, vocab=V)


@functools.cache
def alone(name, kind):
  return train((1, 1, 1), name=name, model=make_model(kind))


def check_cut(mesh, microbatches, name, kind):
  losses, metrics, state = train(mesh, microbatches, name, model=make_model(kind))
  truth, expected, reference = alone(name, kind)
  assert truth[0] != truth[-1]
  np.testing.assert_allclose(losses, truth, atol=1e-5, rtol=1e-5)
  for path, leaf in tree.paths(state.params).items():
    other = tree.paths(reference.params)[path]
    np.testing.assert_allclose(leaf, other, atol=5e-5, err_msg=path)
  for key, m in expected.items():
    np.testing.assert_allclose(metrics[key], m, rtol=2e-4, err_msg=key)


CUTS = [
  ((1, 1, 1), 2, 'adamw'),
  ((1, 1, 1), 4, 'adamw'),
  ((8, 1, 1), 1, 'adamw'),
  ((2, 1, 4), 4, 'adamw'),
  ((1, 2, 4), 1, 'muon'),
  ((1, 1, 8), 2, 'adamw'),
  ((1, 8, 1), 1, 'adafactor'),
]


@pytest.mark.parametrize(('mesh', 'microbatches', 'name'), CUTS)
def test_no_number_depends_on_the_cut(mesh, microbatches, name):
  check_cut(mesh, microbatches, name, 'tiny')


@pytest.mark.slow
@pytest.mark.parametrize(
  ('mesh', 'microbatches'),
  [((8, 1, 1), 2), ((2, 1, 4), 4), ((1, 2, 4), 1), ((1, 1, 8), 2)],
)
def test_no_number_of_a_transformer_depends_on_the_cut(mesh, microbatches):
  check_cut(mesh, microbatches, 'adamw', 'transformer')


def test_a_repeat_is_equal_to_the_bit():
  first, second = (train((2, 1, 4), 2) for _ in range(2))
  assert first[0] == second[0]
  assert tree.digest(first[2]) == tree.digest(second[2])


def test_dropout_differs_between_steps_rows_and_with_its_key():
  batch = next(batches())
  same = jax.tree.map(lambda x: np.repeat(x[:1], B, 0), batch)
  objective = next_token()
  params = MODEL.init(jax.random.key(0))
  batch = {**same, 'rows': np.arange(B)}
  hidden, _, _ = MODEL.hidden(params, batch, key=jax.random.key(3))
  assert not np.allclose(hidden[0], hidden[1])
  losses = {
    float(objective(MODEL, params, {}, batch, jax.random.key(k))[0]) for k in range(3)
  }
  assert len(losses) == 3


@pytest.mark.parametrize(
  'name', ['adamw', 'muon', 'schedule_free', 'adafactor', 'lion']
)
@pytest.mark.parametrize('fault', ['nan', 'no weight'])
def test_a_bad_batch_is_skipped_and_counted(name, fault):
  def poisoned(model, params, frozen, batch, key):
    total, weight, metrics = next_token()(model, params, frozen, batch, key)
    if fault == 'nan':  # In one number of the gradient, and not in the loss.
      bend = jnp.where(batch['tokens'][0, 0] == V - 1, jnp.nan, 0.0)
      scale = params['norm']['scale'][0]
      total = total + bend * (scale - jax.lax.stop_gradient(scale))
    return total, weight, metrics

  with sharding.use(sharding.make_mesh({'data': 1}, jax.devices()[:1])):
    optim = optimizer(name)
    train_step = jax.jit(step.make_train_step(MODEL, poisoned, optim))
    good, bad = batches(2)
    good['tokens'][0, 0] = 0
    if fault == 'nan':
      bad['tokens'][0, 0] = V - 1
    else:
      bad['weights'] = np.zeros_like(bad['weights'])
    before, metrics = train_step(
      step.init_state(jax.random.key(0), MODEL, optim), sharding.put(good), {}
    )
    assert metrics['bad'] == (0, 1)
    after, metrics = train_step(before, sharding.put(bad), {})
    assert metrics['bad'] == (1, 1)
    assert after.step == 2, 'the data and the learning rate move on'
    for x, y in zip(
      jax.tree.leaves((before.params, before.opt_state)),
      jax.tree.leaves((after.params, after.opt_state)),
      strict=True,
    ):
      np.testing.assert_array_equal(x, y)
    final, metrics = train_step(after, sharding.put(good), {})
    assert metrics['bad'] == (0, 1)
    assert metrics['lr'].total == optim.rate(3)
    assert tree.digest(final.params) != tree.digest(after.params)


def test_only_adapters_over_a_frozen_base_change():
  whole = MODEL.init(jax.random.key(0))
  a = 0.1 * jax.random.normal(jax.random.key(1), (2, D, 3))
  pair = {'a': a, 'b': jnp.zeros((2, 3, H, K))}
  names = {'a': ('layers', 'embed', None), 'b': ('layers', None, 'heads', 'head')}
  params = {'layers': {'0:2:1': {'mixer': {'query': pair}}}}
  axes = {'layers': {'0:2:1': {'mixer': {'query': names}}}}
  start = jax.device_get(params)

  with sharding.use(sharding.make_mesh({'fsdp': 2, 'tensor': 4})):
    layout = sharding.layout(whole, MODEL.axes)
    base = jax.device_put(whole, layout)
    digest = tree.digest(jax.device_get(base))
    optim = optimizer(axes=axes, assemble=lora.assemble, weight_decay=0.0)
    state = step.init_state(jax.random.key(0), MODEL, optim, params=params, axes=axes)
    train_step = jax.jit(
      step.make_train_step(MODEL, next_token(), optim, axes=axes, microbatches=2),
      donate_argnums=0,
    )
    plain = MODEL.hidden(whole, next(batches()))[0]
    frozen = {'base': base}
    weights = optim.weights(state.opt_state, state.params, frozen)
    untrained = jax.jit(MODEL.hidden)(weights, next(batches()))[0]
    np.testing.assert_allclose(untrained, plain, atol=1e-5)
    for batch in batches(3):
      state, _ = train_step(state, sharding.put(batch), frozen)
    weights = optim.weights(state.opt_state, state.params, frozen)
    trained = jax.jit(MODEL.hidden)(weights, next(batches()))[0]

  assert jax.tree.structure(state.params) == jax.tree.structure(params)
  for path, leaf in tree.paths(state.params).items():
    assert np.abs(leaf - tree.paths(start)[path]).max() > 0, path
  assert np.abs(trained - plain).max() > 1e-4
  assert tree.digest(jax.device_get(base)) == digest
  assert weights['norm']['scale'] is base['norm']['scale']


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_the_update_copies_no_leaf_of_the_state(name):
  with sharding.use(sharding.make_mesh({'data': 1}, jax.devices()[:1])):
    optim = optimizer(name)
    state = step.init_state(jax.random.key(0), MODEL, optim)
    run = jax.jit(step.make_train_step(MODEL, next_token(), optim), donate_argnums=0)
    compiled = run.lower(state, sharding.put(next(batches())), {}).compile()
  shapes = {','.join(map(str, x.shape)) for x in jax.tree.leaves(state.params)}
  copies = re.findall(r'= f32\[([0-9,]+)\]\S* copy\(', compiled.as_text())
  assert not shapes.intersection(copies)
  aliased = compiled.memory_analysis().alias_size_in_bytes
  assert aliased >= tree.size((state.params, state.opt_state))


def test_maxima_and_sums_of_micro_batches():
  def objective(model, params, frozen, batch, key):
    total = jnp.sum(batch['weights']) * params['w'][0]
    seen = batch['rows'].astype(jnp.float32)
    metrics = {'top': Max(seen.max()), 'rows': Sum(seen.sum(), 1.0 * len(seen))}
    return total, jnp.sum(batch['weights']), metrics

  model = MODEL._replace(init=lambda key: {'w': jnp.ones(2)}, axes={'w': (None,)})
  optim = optimizer(axes=model.axes, clip=0.0)
  state = step.new_state(model.init(None), optim, jax.random.key(0))
  batch = next(batches())
  for microbatches in (1, 4):
    run = step.make_train_step(model, objective, optim, microbatches=microbatches)
    _, metrics = jax.jit(run)(state, batch, {})
    assert metrics['top'].value == B - 1
    assert metrics['rows'] == (B * (B - 1) / 2, B)
    assert metrics['weight'].total == pytest.approx(batch['weights'].sum(), rel=1e-6)
    np.testing.assert_allclose(metrics['grad_norm'].total, 1.0, rtol=1e-6)


def test_the_state_is_made_where_it_lies():
  with sharding.use(sharding.make_mesh({'fsdp': 2, 'tensor': 4})):
    optim = optimizer('muon', ema=0.9)
    abstract = step.abstract_state(MODEL, optim)
    key = jax.random.key(0)
    state = step.init_state(key, MODEL, optim)
  for path, leaf in tree.paths(state).items():
    expected = tree.paths(abstract)[path]
    assert (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype), path
    assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim), path
  params = tree.paths(state.params)
  opt_state = tree.paths(state.opt_state)
  where = jax.P(None, 'fsdp', 'tensor')
  where = jax.NamedSharding(params[QUERY].sharding.mesh, where)
  assert params[QUERY].sharding.is_equivalent_to(where, 4)
  for path in (f'rule/momentum/{QUERY}', f'average/{QUERY}'):
    assert opt_state[path].sharding == params[QUERY].sharding
  tokens = opt_state['rule/adam/mu/embed/tokens']
  assert tokens.sharding == params['embed/tokens'].sharding
  jax.random.split(key)  # It was not handed over to the state.
  assert not np.array_equal(jax.random.key_data(key), jax.random.key_data(state.key))


@pytest.mark.parametrize(
  ('rows', 'microbatches', 'message'),
  [
    (16, 3, r'c.batch_size=16 is no multiple of 12: 4 device.*c.microbatches=3.*12 or'),
    (6, 1, r'c.batch_size=6 is no multiple of 4.*\(data, fsdp\).*take 4 or 8'),
    (2, 1, 'take 4'),
    (0, 1, 'c.batch_size=0'),
    (8, 0, 'c.microbatches=0'),
  ],
)
def test_a_batch_that_does_not_divide(rows, microbatches, message):
  with sharding.use(sharding.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})):
    step.check_batch(16, 4)
    with pytest.raises(Mistake, match=message):
      step.check_batch(rows, microbatches)
