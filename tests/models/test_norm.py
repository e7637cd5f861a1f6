"""Norms against their formulas, forward and backward, on a CPU and elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import sharding
from gptjax.models import norm


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
@pytest.mark.parametrize('centred', [True, False])
@pytest.mark.parametrize('biased', [True, False])
@pytest.mark.parametrize('shape', [(3, 7, 16), (2, 5, 3, 8)])
def test_values_and_gradients(platform, centred, biased, shape):
  rng = np.random.default_rng(0)
  D = shape[-1]
  x, w = (jnp.asarray(rng.normal(1, 2, shape), jnp.float32) for _ in range(2))
  scale, bias = (jnp.asarray(rng.normal(size=D), jnp.float32) for _ in range(2))

  def wanted(x, scale, bias):
    y = x - x.mean(-1, keepdims=True) if centred else x
    y = y / jnp.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)
    y = y * scale.reshape((1,) * (x.ndim - 1) + (D,))
    return y + bias.reshape((1,) * (x.ndim - 1) + (D,)) if biased else y

  def found(x, scale, bias):
    return norm._normed(x, scale, bias if biased else None, centred, 1e-5)

  def results(function):
    total = lambda *a: jnp.sum(w * function(*a))  # noqa: E731
    return [function(x, scale, bias), *jax.grad(total, (0, 1, 2))(x, scale, bias)]

  mesh = sharding.make_mesh(dict(data=1), jax.devices()[:1])
  with sharding.use(mesh, platform=platform):
    ours = results(found)
  for f, r in zip(ours, results(wanted), strict=True):
    np.testing.assert_allclose(f, r, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_normed_in_float32():
  x = jnp.asarray(np.random.default_rng(0).normal(100, 1, (4, 64)), jnp.bfloat16)
  scale = jnp.ones(64)
  half = norm._normed(x, scale, None, True, 1e-5)
  exact = norm._normed(x.astype(jnp.float32), scale, None, True, 1e-5)
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(jnp.float32), exact, atol=0.02)
