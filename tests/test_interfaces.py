"""The interfaces of words.py, used as later work will use them, on a 2-layer model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import tree
from gptjax.models import lora
from gptjax.models.lora import adapters, overlay
from gptjax.models.transformer import transformer
from gptjax.words import Cache, Optimizer, Sum, TrainState

SIZES = dict(vocab=61, layers=2, embed=16, heads=4, kv_heads=2, mlp=24)


@pytest.fixture(scope='module')
def model():
  return transformer(preset='llama', outputs=('lm', 'values'), **SIZES)


@pytest.fixture(scope='module')
def params(model):
  found = model.init(jax.random.key(0))
  return jax.tree.map(lambda x: 3 * x, found)


@pytest.fixture(scope='module')
def batch():
  tokens = jax.random.randint(jax.random.key(1), (3, 8), 0, 61)
  targets = jnp.roll(tokens, -1, 1)
  return {'tokens': tokens, 'targets': targets, 'weights': jnp.ones((3, 8))}


def nats(model, params, batch):
  """A plain objective: the loss summed, its weight, metrics."""
  hidden, _, _ = model.hidden(params, batch)
  logs = jax.nn.log_softmax(model.heads['lm'](params, hidden))
  found = -jnp.take_along_axis(logs, batch['targets'][..., None], -1)[..., 0]
  total, count = jnp.sum(found * batch['weights']), jnp.sum(batch['weights'])
  return total, count, {'loss': Sum(total, count)}


def test_an_adapter_is_the_trainable_part_over_a_frozen_base(model, params, batch):
  patterns = ['layers/*/attention/*', 'layers/*/mlp/down']
  targets = lora.chosen(model.axes, patterns)
  small = adapters(jax.random.key(2), params, targets, rank=3)
  axes = lora.adapter_axes(model.axes, targets)
  ranks = jax.tree.map(lambda x, names: x.ndim == len(names), small, axes)
  assert all(jax.tree.leaves(ranks))
  assert tree.count(small) < tree.count(params) / 2
  whole = functools.partial(overlay, scale=2.0)
  loss = lambda p, base, b: nats(model, whole(base, p), b)[0]  # noqa: E731
  step = jax.jit(jax.value_and_grad(loss))
  plain = jax.jit(lambda p: nats(model, p, batch)[0])(params)
  first, grads = step(small, params, batch)
  np.testing.assert_allclose(first, plain, rtol=1e-6)  # b is zero.
  assert jax.tree.structure(grads) == jax.tree.structure(small)
  moved = jax.tree.map(lambda x, g: x - 1e-3 * g, small, grads)
  moved = jax.tree.map(lambda x, g: x - 1e-3 * g, moved, step(moved, params, batch)[1])
  assert step(moved, params, batch)[0] < first
  merged = multiplied_out(params, moved, 2.0)
  for path, w in tree.paths(lora.merge(whole(params, moved))).items():
    np.testing.assert_allclose(w, tree.paths(merged)[path], atol=1e-6, err_msg=path)
  got = jax.jit(lambda p: nats(model, p, batch)[0])(merged)
  np.testing.assert_allclose(got, step(moved, params, batch)[0], rtol=1e-5)


def multiplied_out(base, small, scale):
  """The adapters multiplied out in NumPy."""
  pairs = tree.paths(small)
  merged = {}
  for path, w in tree.paths(base).items():
    w = np.array(w)
    if f'{path}/a' in pairs:
      a, b = (np.array(pairs[f'{path}/{x}']) for x in 'ab')
      for layer in range(len(w)):
        rank = b.shape[1]
        both = a[layer].reshape(-1, rank) @ b[layer].reshape(rank, -1)
        w[layer] += scale * both.reshape(w[layer].shape)
    merged[path] = jnp.asarray(w)
  return tree.map_paths(lambda path, _: merged[path], base)


def test_other_leaves_replace_the_frozen_ones(params):
  new = {'norm': {'scale': jnp.full((16,), 5.0)}}
  whole = overlay(params, new)
  assert whole['norm']['scale'][0] == 5
  assert jax.tree.structure(whole) == jax.tree.structure(params)


def test_two_heads_stand_on_one_trunk(model, params, batch):
  def both(params):
    hidden, _, _ = model.hidden(params, batch)
    logits = model.heads['lm'](params, hidden)
    values = model.heads['values'](params, hidden)
    return jnp.sum(values**2) + jnp.sum(jax.nn.log_softmax(logits)[..., 0]), (
      logits,
      values,
    )

  grads, (logits, values) = jax.jit(jax.grad(both, has_aux=True))(params)
  assert logits.shape == (3, 8, 128)
  assert np.all(np.asarray(logits[..., 61:]) == -np.inf)
  assert values.shape == (3, 8)
  assert tree.norm(grads['heads']['values']) > 0
  assert np.isfinite(tree.norm(grads))


@pytest.mark.parametrize('scan', [False, True])
def test_a_cache_holds_rows_of_unequal_length(params, batch, scan):
  model = transformer(preset='llama', outputs=('lm', 'values'), scan=scan, **SIZES)
  hidden = jax.jit(lambda p, b: model.hidden(p, b)[0])
  step = jax.jit(lambda p, b, c: model.hidden(p, b, cache=c)[:2])
  lengths = np.array([5, 2, 7])
  whole = hidden(params, {'tokens': batch['tokens']})
  segments = (np.arange(8)[None] < lengths[:, None]).astype(np.int32)
  padded = {'tokens': jnp.where(segments, batch['tokens'], 60), 'segments': segments}
  prompt, cache = step(params, padded, model.new_cache(3, 8, jnp.float32))
  assert isinstance(cache, Cache)
  np.testing.assert_array_equal(cache.lengths, lengths)
  for row, n in enumerate(lengths):
    np.testing.assert_allclose(prompt[row, :n], whole[row, :n], atol=2e-5)
  # A row goes on, one waits, one reaches the last slot.
  more = np.array([[1], [0], [1]])
  tokens = jnp.take_along_axis(batch['tokens'], lengths[:, None], 1)
  one = {'tokens': tokens, 'segments': more}
  got, cache = step(params, one, cache)
  np.testing.assert_array_equal(cache.lengths, [6, 2, 8])
  for row in (0, 2):
    np.testing.assert_allclose(got[row, 0], whole[row, lengths[row]], atol=2e-5)
  # The one that waited has lost nothing; a full row drops what is too much.
  tokens = jnp.stack([batch['tokens'][0, 6:7], batch['tokens'][1, 2:3], tokens[2]])
  got, cache = step(params, {'tokens': tokens}, cache)
  np.testing.assert_allclose(got[0, 0], whole[0, 6], atol=2e-5)
  np.testing.assert_allclose(got[1, 0], whole[1, 2], atol=2e-5)
  np.testing.assert_array_equal(cache.lengths, [7, 3, 8])


@pytest.mark.parametrize('scan', [False, True])
def test_layers_are_watched_and_edited(params, batch, scan):
  model = transformer(preset='llama', outputs=('lm', 'values'), scan=scan, **SIZES)
  names = ('attention', 'residual', 'mlp', 'attention_out')

  @functools.partial(jax.jit, static_argnums=1)
  def run(layer, name, factor):
    def edit(number, at, value):
      return jnp.where(number == layer, factor * value, value) if at == name else value

    hidden, _, aux = model.hidden(params, batch, watch=names, edit=edit)
    return hidden, aux['watch']

  plain, seen = run(0, 'mlp', 1.0)
  np.testing.assert_allclose(plain, model.hidden(params, batch)[0], atol=2e-5)
  assert seen['attention'].shape == (2, 3, 4, 8, 8)
  np.testing.assert_allclose(seen['attention'].sum(-1), 1, atol=1e-5)
  assert not np.triu(np.asarray(seen['attention']), 1).any()
  first = seen['residual'][0] + seen['attention_out'][1] + seen['mlp'][1]
  np.testing.assert_allclose(first, seen['residual'][1], atol=1e-5)
  for name in names:
    edited, other = run(1, name, 0.0)
    assert not np.asarray(other[name][1]).any()
    np.testing.assert_array_equal(other['residual'][0], seen['residual'][0])
    assert not np.allclose(edited, plain)
  edited, other = run(0, 'mlp', 0.0)
  assert not np.asarray(other['mlp'][0]).any()
  assert np.asarray(other['mlp'][1]).any()


class Rollouts:
  """A Source whose state holds arrays: a key and a buffer of rows."""

  def __init__(self, model):
    self.model = model
    self.key, self.rows = jax.random.key(4), np.zeros((3, 1), np.int32)
    self.sample = jax.jit(self._sample)

  def _sample(self, weights, key, rows):
    hidden, _, _ = self.model.hidden(weights, {'tokens': rows})
    logits = self.model.heads['lm'](weights, hidden[:, -1])
    return jax.random.categorical(key, logits)

  def next(self, weights):
    self.key, key = jax.random.split(self.key)
    new = np.asarray(self.sample(weights(), key, self.rows[:, -1:]))
    self.rows = np.concatenate([self.rows, new[:, None]], 1)[:, -4:]
    return {'tokens': jnp.asarray(self.rows)}

  def get_state(self):
    return {'key': jax.random.key_data(self.key), 'rows': self.rows}

  def set_state(self, state):
    self.key = jax.random.wrap_key_data(jnp.asarray(state['key']))
    self.rows = np.asarray(state['rows'])


def test_a_source_goes_on_from_a_state_of_arrays(model, params):
  source, other = Rollouts(model), Rollouts(model)
  for _ in range(4):
    source.next(lambda: params)
  state = jax.tree.map(np.array, source.get_state())
  want = [np.asarray(source.next(lambda: params)['tokens']) for _ in range(3)]
  other.set_state(state)
  got = [np.asarray(other.next(lambda: params)['tokens']) for _ in range(3)]
  np.testing.assert_array_equal(got, want)
  assert np.max(got) < 61  # Padded ids are never drawn.


def averaged(lr, decay):
  """Plain descent whose weights for others are a moving average over the base."""

  def update(grads, state, params):
    params = jax.tree.map(lambda p, g: p - lr * g, params, grads)
    mixed = jax.tree.map(lambda m, p: decay * m + (1 - decay) * p, state, params)
    return params, mixed

  return Optimizer(
    init=lambda params: jax.tree.map(jnp.copy, params),
    update=update,
    weights=lambda state, params, frozen: overlay(frozen['base'], state),
    rate=lambda step: jnp.asarray(lr),
    axes=lambda names: names,
  )


def test_weights_may_differ_from_params(model, params, batch):
  optimizer = averaged(1e-3, 0.5)
  targets = lora.chosen(model.axes, ['query'])
  small = adapters(jax.random.key(2), params, targets, rank=2)
  axes = lora.adapter_axes(model.axes, targets)
  frozen = {'base': params}
  key = jax.random.key(3)
  state = TrainState(jnp.int32(0), small, optimizer.init(small), key)

  @jax.jit
  def step(state, batch, frozen):
    def loss(p):
      total, weight, _ = nats(model, overlay(frozen['base'], p), batch)
      return total / weight

    grads = jax.grad(loss)(state.params)
    new, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return TrainState(state.step + 1, new, opt_state, state.key)

  for _ in range(3):
    state = step(state, batch, frozen)
  weights = optimizer.weights(state.opt_state, state.params, frozen)
  score = jax.jit(lambda w: nats(model, w, batch)[0])
  trained = overlay(params, state.params)
  scores = [float(score(w)) for w in (params, weights, trained)]
  assert scores[0] > scores[1] > scores[2]
  names = jax.tree.map(
    lambda x, n: x.ndim == len(n), state.opt_state, optimizer.axes(axes)
  )
  assert all(jax.tree.leaves(names))
