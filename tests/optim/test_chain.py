"""What optimizers share: clipping, decay and rates by pattern, averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import tree
from gptjax.models.lora import overlay
from gptjax.optim import _chain
from gptjax.optim.adamw import adamw
from gptjax.words import Mistake

AXES = {
  'embed': {'tokens': ('vocab', 'embed')},
  'layers': {
    '0:3:1': {
      'up': ('layers', 'embed', 'mlp'),
      'up_bias': ('layers', 'mlp'),
      'query_bias': ('layers', 'heads', 'head'),
    }
  },
}
UP = 'layers/0:3:1/up'


def params():
  keys = iter(jax.random.split(jax.random.key(0), 4))
  shapes = {
    'embed': {'tokens': (8, 4)},
    'layers': {'0:3:1': {'up': (3, 4, 6), 'up_bias': (3, 6), 'query_bias': (3, 2, 2)}},
  }
  return jax.tree.map(
    lambda shape: jax.random.normal(next(keys), shape),
    shapes,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def optimizer(**options):
  options = {'lr': 0.1, 'decay': 'constant', 'weight_decay': 0.0, **options}
  return adamw(steps=10, axes=AXES, **options)


def change(grads, **options):
  """What one update changes, by path."""
  optim, start = optimizer(**options), params()
  after, _ = jax.jit(optim.update)(grads, optim.init(start), start, 0)
  return tree.paths(jax.tree.map(lambda a, b: np.asarray(a - b), after, start))


def zeros():
  return jax.tree.map(jnp.zeros_like, params())


def ones():
  return jax.tree.map(jnp.ones_like, params())


def test_only_matrices_decay_and_patterns_change_it():
  start = tree.paths(params())
  found = change(zeros(), weight_decay=0.5)
  np.testing.assert_allclose(found[UP], -0.05 * start[UP], rtol=1e-5, atol=1e-7)
  for path in set(start) - {UP}:
    assert not found[path].any(), path
  decays = {'embed/*': 0.5, 'layers/1/*': 0.0}
  found = change(zeros(), weight_decay=0.5, decays=decays)
  tokens = 'embed/tokens'
  np.testing.assert_allclose(
    found[tokens], -0.025 * start[tokens], rtol=1e-4, atol=1e-7
  )
  layers = np.float32([1, 0, 1]).reshape(3, 1, 1)
  expected = -0.05 * layers * start[UP]
  np.testing.assert_allclose(found[UP], expected, rtol=1e-4, atol=1e-7)


def test_rates_by_pattern_and_by_layer():
  found = change(ones(), rates={'embed/*': 0.1, 'layers/2/up': 0.5, '*_bias': 3.0})
  np.testing.assert_allclose(found['embed/tokens'], -0.01, rtol=1e-4)
  np.testing.assert_allclose(found[UP][:2], -0.1, rtol=1e-4)
  np.testing.assert_allclose(found[UP][2], -0.05, rtol=1e-4)


def test_a_rate_of_zero_leaves_a_leaf_as_it_is():
  found = change(ones(), rates={'*_bias': 0.0}, weight_decay=0.1)
  assert not found['layers/0:3:1/up_bias'].any()
  assert found[UP].any()


@pytest.mark.parametrize('key', ['rates', 'decays'])
def test_a_pattern_must_match_something(key):
  with pytest.raises(Mistake, match=rf"c.optim.{key}: no leaf matches \['embd/\*'\]"):
    optimizer(**{key: {'embd/*': 0.1}}).init(params())


def test_clipping():
  grads = jax.tree.map(lambda x: 3 * x, params())
  norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(grads)))
  found = _chain.clip_by_norm(grads, 2.0)
  expected = jax.tree.map(lambda g: g * 2.0 / norm, grads)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected
  )
  for limit in (0.0, 2 * norm):
    same = _chain.clip_by_norm(grads, limit)
    jax.tree.map(np.testing.assert_array_equal, same, grads)
  assert all(not g.any() for g in jax.tree.leaves(_chain.clip_by_norm(zeros(), 1.0)))


def test_the_average_is_what_weights_gives():
  optim = optimizer(ema=0.7)
  p = params()
  state = optim.init(p)
  average = jax.tree.map(np.float64, p)
  for n in range(8):
    p, state = jax.jit(optim.update)(ones(), state, p, n)
    keep = min(0.7, (1 + n) / (10 + n))
    average = jax.tree.map(lambda a, x, k=keep: k * a + (1 - k) * x, average, p)
  found = optim.weights(state, p, {})
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, average)
  assert np.abs(found['embed']['tokens'] - p['embed']['tokens']).max() > 0.05


def test_weights_stand_over_a_frozen_base():
  base = {'embed': {'tokens': jnp.zeros((8, 4))}, 'norm': jnp.ones(4)}
  optim = optimizer(assemble=overlay)
  p = params()
  whole = optim.weights(optim.init(p), p, {'base': base, 'reference': base})
  assert whole['embed']['tokens'] is p['embed']['tokens']
  assert whole['norm'] is base['norm']
  with pytest.raises(ValueError, match='assemble='):
    optimizer().weights(optim.init(p), p, {'base': base})


def test_sides():
  assert _chain.sides(('layers', 'embed', 'heads', 'head')) == ((1,), (2, 3))
  assert _chain.sides(('layers', 'heads', 'head', 'embed')) == ((1, 2), (3,))
  assert _chain.sides(('layers', 'experts', 'embed', 'mlp')) == ((2,), (3,))
  assert _chain.sides(('layers', 'kv_heads', 'head')) is None
  assert _chain.sides(('layers', 'norm')) is None
  assert _chain.sides(('norm',)) is None
