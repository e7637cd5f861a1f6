"""Next-token prediction: cross-entropy in nats, with z-loss and label smoothing.

Source: Bengio et al. 2003; the terms of the loss are models/loss.py's.
"""

import math

import jax
import jax.numpy as jnp

from gptjax.models.loss import cross_entropy
from gptjax.objectives import _trunk
from gptjax.words import (
  Array,
  Batch,
  Frozen,
  Metrics,
  Mistake,
  Model,
  Objective,
  Params,
  Sum,
)


def next_token(
  z_loss: float = 0.0, smoothing: float = 0.0, neftune: float = 0.0, chunk: int = 1024
) -> Objective:
  """Weighted nats of the targets, summed; the weight is that of the targets.

  Metrics: nats (no z-loss, no smoothing) and accuracy, each per target by weight, and
  the model's own sums.

  Args:
    z_loss: factor of log_z^2, about 1e-4.
    smoothing: share of the target's probability spread over the vocabulary.
    neftune: alpha of the noise on embeddings while training, about 5; 0: none.
    chunk: tokens whose logits are there at a time.

  Raises:
    Mistake: a number out of range.
  """
  _trunk.check(neftune, smoothing)
  if not 0 <= z_loss < math.inf:
    raise Mistake(f'c.objective.z_loss={z_loss}: a factor of at least 0.')
  if chunk < 1:
    raise Mistake(f'c.objective.chunk={chunk}: at least 1 token.')

  def objective(
    model: Model, params: Params, frozen: Frozen, batch: Batch, key: jax.Array | None
  ) -> tuple[Array, Array, Metrics]:
    del frozen
    hidden, metrics = _trunk.trunk(model, params, batch, key, neftune)
    weights = jnp.asarray(batch['weights'], jnp.float32)  # [B, T]
    loss = cross_entropy(
      _trunk.head(model, params, 'lm'),
      hidden,
      jnp.asarray(batch['targets']),
      weights,
      z_loss=z_loss,
      smoothing=smoothing,
      chunk=chunk,
    )
    weight = jnp.sum(weights)
    metrics['nats'] = Sum(jnp.sum(weights * loss.nats), weight)
    metrics['accuracy'] = Sum(jnp.sum(weights * loss.correct), weight)
    return loss.total, weight, metrics

  return objective
