"""Classification: cross-entropy of the head `classes` where the weights say.

Letters: C classes.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

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

Counts = Callable[[], Sequence[int]]


def classify(
  class_weights: str | Sequence[float] = '',
  smoothing: float = 0.0,
  neftune: float = 0.0,
  counts: Counts | None = None,
) -> Objective:
  """Weighted nats of the classes in `batch['targets']`, summed.

  The weight of a target is the batch's times that of its class, and so is the sum that
  the loss is divided by. Metrics: nats and accuracy, each per target by the batch's
  weight alone.

  Args:
    class_weights: of each class, for unbalanced data; 'balanced': examples / (C times
      those of the class); '': 1 each.
    smoothing: share of the target's probability spread over the classes.
    neftune: alpha of the noise on embeddings while training, about 5; 0: none.
    counts: gives the examples of each class in training, for 'balanced'.

  Raises:
    Mistake: a number out of range, or a class to balance that has no example.
  """
  _trunk.check(neftune, smoothing)
  factors = _factors(class_weights, counts)

  def objective(
    model: Model, params: Params, frozen: Frozen, batch: Batch, key: jax.Array | None
  ) -> tuple[Array, Array, Metrics]:
    del frozen
    hidden, metrics = _trunk.trunk(model, params, batch, key, neftune)
    plain = jnp.asarray(batch['weights'], jnp.float32)  # [B, T]
    targets, weights = jnp.asarray(batch['targets']), plain
    head = _trunk.head(model, params, 'classes')
    if factors is not None:
      _check_count(len(factors), jax.eval_shape(head, hidden).shape[-1])
      # Where the weight is 0 the target is no class but a token, of any number.
      weights = plain * jnp.asarray(factors).at[targets].get(mode='clip')
    loss = cross_entropy(head, hidden, targets, weights, smoothing=smoothing)
    metrics['nats'] = Sum(jnp.sum(plain * loss.nats), jnp.sum(plain))
    metrics['accuracy'] = Sum(jnp.sum(plain * loss.correct), jnp.sum(plain))
    return loss.total, jnp.sum(weights), metrics

  return objective


def _check_count(factors: int, classes: int) -> None:
  if factors != classes:
    raise Mistake(
      f'c.objective.class_weights has {factors} numbers for {classes} classes.'
    )


def _factors(given: str | Sequence[float], counts: Counts | None) -> np.ndarray | None:
  """The factor of each class [C] float32; None: 1 each."""
  if given == 'balanced':
    if counts is None:
      raise Mistake("c.objective.class_weights='balanced': nothing to count is given.")
    found = np.asarray(counts(), np.float64)
    if not (found > 0).all():
      raise Mistake(
        f"c.objective.class_weights='balanced': class {int(found.argmin())} of "
        f'{len(found)} has no example in training.'
      )
    return (found.sum() / len(found) / found).astype(np.float32)
  if isinstance(given, str) and given:
    raise Mistake(
      f"c.objective.class_weights={given!r}: allowed are '', 'balanced' and a tuple of "
      'a number for each class.'
    )
  factors = np.asarray(tuple(given), np.float32)
  if not (factors >= 0).all() or (len(factors) and not factors.any()):
    raise Mistake(f'c.objective.class_weights={given}: from 0, and not all 0.')
  return factors if len(factors) else None
