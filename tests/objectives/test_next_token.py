"""The objective against log-softmax, one token at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.objectives.next_token import next_token
from gptjax.words import Model, Sum

V, D, B, T = 11, 6, 3, 7


def hidden(params, batch, *, key=None, **_):
  x = params['tokens'][batch['tokens']]
  if key is not None:
    x = x + jax.random.normal(key, x.shape)
  return x, None, {'balance': Sum(jnp.float32(2), jnp.float32(4)), 'watch': {'x': x}}


def lm(params, x):
  return jnp.einsum('...D,VD->...V', x, params['tokens'])


MODEL = Model(lambda key: {}, hidden, None, {'lm': lm}, {}, None)


def problem():
  rng = np.random.default_rng(0)
  params = {'tokens': jnp.asarray(rng.standard_normal((V, D)), jnp.float32)}
  batch = {
    'tokens': rng.integers(0, V, (B, T)),
    'targets': rng.integers(0, V, (B, T)),
    'weights': (rng.random((B, T)) * rng.integers(0, 2, (B, T))).astype(np.float32),
  }
  return params, batch


@pytest.mark.parametrize('chunk', [4, 1024])
@pytest.mark.parametrize(
  ('z_loss', 'smoothing'), [(0.0, 0.0), (0.01, 0.0), (0.02, 0.1)]
)
def test_sums_of_nats(chunk, z_loss, smoothing):
  params, batch = problem()
  objective = next_token(z_loss=z_loss, smoothing=smoothing, chunk=chunk)
  total, weight, metrics = objective(MODEL, params, {}, batch, None)
  table = np.asarray(params['tokens'], np.float64)
  loss = nats = right = 0.0
  for b in range(B):
    for t in range(T):
      logits = table @ table[batch['tokens'][b, t]]
      log_z = np.log(np.exp(logits).sum())
      own, target = log_z - logits, batch['targets'][b, t]
      smooth = (1 - smoothing) * own[target] + smoothing * own.mean()
      w = batch['weights'][b, t]
      loss += w * (smooth + z_loss * log_z**2)
      nats += w * own[target]
      right += w * (own.argmin() == target)
  count = batch['weights'].sum()
  np.testing.assert_allclose([total, weight], [loss, count], rtol=1e-5)
  np.testing.assert_allclose(metrics['nats'], [nats, count], rtol=1e-5)
  np.testing.assert_allclose(metrics['accuracy'], [right, count], rtol=1e-5)


def test_the_sums_of_the_model_are_passed_on_and_watched_values_are_not():
  params, batch = problem()
  _, _, metrics = next_token()(MODEL, params, {}, batch, None)
  assert sorted(metrics) == ['accuracy', 'balance', 'nats']
  assert metrics['balance'] == (2, 4)


def test_the_key_reaches_the_model():
  params, batch = problem()
  plain, noisy, other = (
    float(next_token()(MODEL, params, {}, batch, key)[0])
    for key in (None, jax.random.key(0), jax.random.key(1))
  )
  assert len({plain, noisy, other}) == 3
