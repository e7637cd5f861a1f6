"""What objectives share: the trunk's pass over a training batch, and its checks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.words import Batch, Metrics, Mistake, Model, Params, Sum


def trunk(
  model: Model, params: Params, batch: Batch, key: jax.Array | None, neftune: float
) -> tuple[jax.Array, Metrics]:
  """Hidden states [B, T, D] and the model's own sums.

  `neftune` is alpha of the noise on embeddings (Jain et al. 2023), drawn with the key.
  """
  noise: dict[str, Any] = {'noise': neftune} if neftune else {}  # Not all know it.
  hidden, _, aux = model.hidden(params, batch, key=key, **noise)
  return jnp.asarray(hidden), {k: m for k, m in aux.items() if isinstance(m, Sum)}


def head(model: Model, params: Params, name: str) -> Callable[[jax.Array], jax.Array]:
  """The function of a head, hidden [..., D] to its output.

  Raises:
    Mistake: the model does not have it.
  """
  if name not in model.heads:
    raise Mistake(
      f'c.objective wants the head {name!r}, and the model has {sorted(model.heads)}: '
      f'set c.model.outputs=({name!r},).'
    )
  found: Any = functools.partial(model.heads[name], params)
  return found


def check(neftune: float, smoothing: float = 0.0) -> None:
  """Raises Mistake for numbers out of range."""
  if not neftune >= 0:
    raise Mistake(f'c.objective.neftune={neftune}: at least 0; about 5 is usual.')
  if not 0 <= smoothing < 1:
    raise Mistake(f'c.objective.smoothing={smoothing}: at least 0 and below 1.')
