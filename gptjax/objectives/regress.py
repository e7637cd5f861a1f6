"""Regression: squared error of the head `values` where the weights say."""

import jax
import jax.numpy as jnp

from gptjax.objectives import _trunk
from gptjax.words import Array, Batch, Frozen, Metrics, Model, Objective, Params, Sum


def regress(neftune: float = 0.0) -> Objective:
  """Weighted squared error against `batch['scores']`, summed.

  Metrics: squared_error and absolute_error, each per number by weight.

  Args:
    neftune: alpha of the noise on embeddings while training, about 5; 0: none.

  Raises:
    Mistake: a number out of range.
  """
  _trunk.check(neftune)

  def objective(
    model: Model, params: Params, frozen: Frozen, batch: Batch, key: jax.Array | None
  ) -> tuple[Array, Array, Metrics]:
    del frozen
    hidden, metrics = _trunk.trunk(model, params, batch, key, neftune)
    weights = jnp.asarray(batch['weights'], jnp.float32)  # [B, T]
    values = _trunk.head(model, params, 'values')(hidden)  # [B, T]
    error = values - jnp.asarray(batch['scores'])
    total, weight = jnp.sum(weights * error**2), jnp.sum(weights)
    metrics['squared_error'] = Sum(total, weight)
    metrics['absolute_error'] = Sum(jnp.sum(weights * jnp.abs(error)), weight)
    return total, weight, metrics

  return objective
