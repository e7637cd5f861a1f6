"""Classification and regression against sums one target at a time; noise by rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.models.transformer import transformer
from gptjax.objectives.classify import classify
from gptjax.objectives.next_token import next_token
from gptjax.objectives.regress import regress
from gptjax.words import Mistake, Model

V, D, C, B, T = 50, 8, 3, 4, 9


def hidden(params, batch, *, key=None, **_):
  return params['tokens'][batch['tokens']], None, {}


MODEL = Model(
  lambda key: {},
  hidden,
  None,
  {
    'classes': lambda params, x: x @ params['classes'],
    'values': lambda params, x: x @ params['values'],
  },
  {},
  None,
)


def problem():
  """Rows whose last token of each of two segments has the class as its target."""
  rng = np.random.default_rng(0)
  params = {
    'tokens': jnp.asarray(rng.standard_normal((V, D)), jnp.float32),
    'classes': jnp.asarray(rng.standard_normal((D, C)), jnp.float32),
    'values': jnp.asarray(rng.standard_normal(D), jnp.float32),
  }
  batch = {
    'tokens': rng.integers(0, V, (B, T)),
    'targets': rng.integers(0, V, (B, T)),  # Elsewhere tokens: beyond all classes.
    'weights': np.zeros((B, T), np.float32),
    'scores': rng.standard_normal((B, T)).astype(np.float32),
  }
  batch['weights'][:, [3, T - 2]] = rng.random((B, 2)) + 0.5
  batch['weights'][1, 3] = 0
  batch['targets'][:, [3, T - 2]] = rng.integers(0, C, (B, 2))
  return params, batch


def places(batch):
  return zip(*np.nonzero(batch['weights']), strict=True)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('weights', ['', (0.5, 2.0, 1.0), 'balanced'])
def test_nats_of_classes(smoothing, weights):
  params, batch = problem()
  objective = classify(weights, smoothing, counts=lambda: [10, 5, 1])
  factors = {'': [1, 1, 1], 'balanced': [16 / 30, 16 / 15, 16 / 3]}.get(
    weights, weights
  )
  loss = count = nats = right = plain = 0.0
  table, head = (np.asarray(params[k], np.float64) for k in ('tokens', 'classes'))
  for b, t in places(batch):
    logits = table[batch['tokens'][b, t]] @ head
    own = np.log(np.exp(logits).sum()) - logits
    target, w = batch['targets'][b, t], batch['weights'][b, t]
    factor = w * factors[target]
    loss += factor * ((1 - smoothing) * own[target] + smoothing * own.mean())
    count += factor
    nats += w * own[target]
    right += w * (own.argmin() == target)
    plain += w
  total, weight, metrics = objective(MODEL, params, {}, batch, None)
  np.testing.assert_allclose([total, weight], [loss, count], rtol=1e-5)
  np.testing.assert_allclose(metrics['nats'], [nats, plain], rtol=1e-5)
  np.testing.assert_allclose(metrics['accuracy'], [right, plain], rtol=1e-5)
  grads = jax.grad(lambda p: objective(MODEL, p, {}, batch, None)[0])(params)
  assert np.isfinite(grads['tokens']).all()
  assert np.abs(grads['classes']).max() > 0


def test_squared_errors_of_scores():
  params, batch = problem()
  total, weight, metrics = regress()(MODEL, params, {}, batch, None)
  table, head = (np.asarray(params[k], np.float64) for k in ('tokens', 'values'))
  square = absolute = 0.0
  for b, t in places(batch):
    error = table[batch['tokens'][b, t]] @ head - batch['scores'][b, t]
    square += batch['weights'][b, t] * error**2
    absolute += batch['weights'][b, t] * abs(error)
  count = batch['weights'].sum()
  np.testing.assert_allclose([total, weight], [square, count], rtol=1e-5)
  np.testing.assert_allclose(metrics['squared_error'], [square, count], rtol=1e-5)
  np.testing.assert_allclose(metrics['absolute_error'], [absolute, count], rtol=1e-5)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: classify(smoothing=1.0), 'c.objective.smoothing=1.0'),
    (lambda: classify(neftune=-1.0), 'c.objective.neftune=-1.0'),
    (lambda: classify('balance'), "class_weights='balance'.*allowed"),
    (lambda: classify((1.0, -1.0)), 'class_weights'),
    (lambda: classify('balanced', counts=lambda: [3, 0]), 'class 1 of 2 has no'),
    (lambda: classify('balanced'), 'nothing to count'),
    (lambda: regress(neftune=-1.0), 'c.objective.neftune'),
    (lambda: next_token(smoothing=-0.1), 'c.objective.smoothing'),
  ],
)
def test_numbers_out_of_range(make, message):
  with pytest.raises(Mistake, match=message):
    make()


def test_a_model_without_the_head_or_with_other_classes():
  params, batch = problem()
  with pytest.raises(Mistake, match='2 numbers for 3 classes'):
    classify((1.0, 2.0))(MODEL, params, {}, batch, None)
  bare = MODEL._replace(heads={'lm': None})
  with pytest.raises(Mistake, match=r"'classes', and the model has \['lm'\]"):
    classify()(bare, params, {}, batch, None)
  with pytest.raises(Mistake, match="head 'values'"):
    regress()(bare, params, {}, batch, None)


@pytest.fixture(scope='module')
def embeddings():
  """(model, params): one that hands its embeddings out unchanged."""
  sizes = dict(vocab=V, layers=1, embed=D, heads=2, mlp=16, init_residual='zero')
  model = transformer(preset='llama', **sizes)
  return model, model.init(jax.random.key(0))


def first(model, params, batch, key, noise):
  """The trunk after a layer that adds nothing: embeddings, with their noise."""
  watch = ('residual',)
  aux = model.hidden(params, batch, key=key, noise=noise, watch=watch)[2]
  return np.asarray(aux['watch']['residual'][0])


def test_noise_on_embeddings_is_uniform_by_the_real_tokens_of_its_row(embeddings):
  model, params = embeddings
  tokens = np.random.default_rng(0).integers(0, V, (3, 64))
  segments = np.ones((3, 64), np.int32)
  segments[1, 16:] = 0
  batch = {'tokens': tokens, 'segments': segments, 'rows': np.array([0, 1, 7])}
  key, alpha = jax.random.key(1), 5.0
  plain = first(model, params, batch, key, 0.0)
  noise = first(model, params, batch, key, alpha) - plain
  for row, real in enumerate((64, 16, 64)):
    limit = alpha / np.sqrt(real * D)
    assert np.abs(noise[row]).max() <= limit * 1.001
    np.testing.assert_allclose(np.std(noise[row]), limit / np.sqrt(3), rtol=0.1)
  turned = {k: v[::-1] for k, v in batch.items()}
  again = first(model, params, turned, key, alpha)[::-1] - plain
  np.testing.assert_allclose(again, noise, atol=1e-6)
  assert np.abs(noise[0] - noise[2]).max() > 0.1
  # Without a key, as in evaluation, there is none.
  np.testing.assert_array_equal(first(model, params, batch, None, alpha), plain)


def test_noise_reaches_the_loss_in_training_only(embeddings):
  model, params = embeddings
  rng = np.random.default_rng(0)
  batch = {'tokens': rng.integers(0, V, (2, 8)), 'targets': rng.integers(0, V, (2, 8))}
  batch['weights'] = np.ones((2, 8), np.float32)
  loss = lambda alpha, key: float(  # noqa: E731
    next_token(neftune=alpha)(model, params, {}, batch, key)[0]
  )
  key = jax.random.key(1)
  assert loss(5.0, key) != loss(0.0, key)
  assert loss(5.0, None) == loss(0.0, None)
