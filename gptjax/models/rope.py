"""Rotary position embedding (Su et al. 2021) and its ways to reach longer contexts.

Letters: B rows, T tokens, H heads, K size of a head. The two halves of a head are the
two coordinates that are turned, as in GPT-NeoX and Llama's released weights.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from gptjax.lookup import nearest
from gptjax.words import Mistake

Frequencies = tuple[np.ndarray, float]  # [K/2] radians a token; factor of cos and sin.


def tables(
  positions: Array, size: int, theta: float, scaling: Mapping[str, Any] | None
) -> tuple[Array, Array]:
  """Cosines and sines [B, T, 1, K/2], float32, for positions [B, T]."""
  rates, factor = frequencies(size, theta, scaling)
  angles = positions[:, :, None, None].astype(jnp.float32) * rates[None, None, None]
  return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: Array, cos: Array, sin: Array) -> Array:
  """Heads [B, T, H, K] turned by their positions' angles."""
  a, b = jnp.split(x.astype(jnp.float32), 2, -1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def frequencies(
  size: int, theta: float, scaling: Mapping[str, Any] | None = None
) -> Frequencies:
  """Radians a token of each pair of a head, and a factor of the rotation."""
  exponents = np.arange(0, size, 2, dtype=np.float64) / size
  options = dict(scaling or {})
  rates, factor = SCALINGS[options.pop('kind', 'none')](theta, exponents, **options)
  return rates.astype(np.float32), factor


def whole(scaling: Mapping[str, Any] | None) -> dict[str, Any] | None:
  """The scaling with what is left out of it as it is by default; None: none."""
  kind = (scaling or {}).get('kind', 'none')
  if kind == 'none':
    return None
  options = list(inspect.signature(SCALINGS[kind]).parameters.values())[2:]
  return {'kind': kind, **{p.name: p.default for p in options}, **(scaling or {})}


def check(scaling: Mapping[str, Any]) -> None:
  """Raises: Mistake: an unknown kind of scaling, or options it does not take."""
  kind = scaling.get('kind', 'none')
  if kind not in SCALINGS:
    raise Mistake(f'c.model.rope.kind={kind!r}: {nearest(str(kind), SCALINGS)}')
  taken = list(inspect.signature(SCALINGS[kind]).parameters.values())[2:]
  allowed = [p.name for p in taken]
  for key in scaling:
    if key not in ('kind', *allowed):
      raise Mistake(f'c.model.rope: {kind} takes no {key!r}: {nearest(key, allowed)}')
  missing = [p.name for p in taken if p.default is p.empty and p.name not in scaling]
  if missing:
    raise Mistake(f'c.model.rope: {kind} needs {", ".join(missing)}.')


def _none(theta: float, exponents: np.ndarray) -> Frequencies:
  return theta**-exponents, 1.0


def _linear(theta: float, exponents: np.ndarray, *, factor: float) -> Frequencies:
  """Positions over `factor` (Chen et al. 2023)."""
  return theta**-exponents / factor, 1.0


def _ntk(theta: float, exponents: np.ndarray, *, factor: float) -> Frequencies:
  """A larger theta: the fastest pair stays, the slowest slows down by `factor`."""
  size = 2 * len(exponents)
  return (theta * factor ** (size / (size - 2))) ** -exponents, 1.0


def _llama3(
  theta: float,
  exponents: np.ndarray,
  *,
  factor: float,
  length: int,
  low: float = 1.0,
  high: float = 4.0,
) -> Frequencies:
  """Slow pairs over `factor`, fast ones as they are, a ramp between (Llama 3.1).

  A pair is slow that turns fewer than `low` times over the trained `length` tokens,
  fast one that turns more than `high` times.
  """
  rates = theta**-exponents
  turns = length * rates / (2 * math.pi)
  keep = np.clip((turns - low) / (high - low), 0, 1)
  return rates * keep + rates / factor * (1 - keep), 1.0


def _yarn(
  theta: float,
  exponents: np.ndarray,
  *,
  factor: float,
  length: int,
  fast: float = 32.0,
  slow: float = 1.0,
  attention: float | None = None,
  truncate: bool = True,
) -> Frequencies:
  """YaRN (Peng et al. 2023): a ramp over the pairs' numbers, and sharper attention.

  Pairs that turn more than `fast` times over the trained `length` stay, those that turn
  fewer than `slow` times are divided by `factor`. `attention`: the factor of cos and
  sin; by default 0.1 ln(factor) + 1. `truncate`: the ramp begins and ends on a pair.
  """
  rates, pairs = theta**-exponents, len(exponents)

  def pair(turns: float) -> float:
    return pairs * math.log(length / (turns * 2 * math.pi)) / math.log(theta)

  start, end = pair(fast), pair(slow)
  if truncate:
    start, end = math.floor(start), math.ceil(end)
  start, end = max(start, 0), min(end, 2 * pairs - 1)
  ramp = (np.arange(pairs) - start) / max(end - start, 1e-3)
  keep = 1 - np.clip(ramp, 0, 1)
  default = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
  mixed = rates * keep + rates / factor * (1 - keep)
  return mixed, default if attention is None else attention


SCALINGS: dict[str, Callable[..., Frequencies]] = {
  'none': _none,
  'linear': _linear,
  'ntk': _ntk,
  'llama3': _llama3,
  'yarn': _yarn,
}


def sinusoids(positions: Array, size: int) -> Array:
  """Fixed embeddings [B, T, D] of positions [B, T] (Vaswani et al. 2017, 3.5)."""
  rates = 10_000.0 ** (-np.arange(0, size, 2, dtype=np.float32) / size)
  angles = positions[:, :, None].astype(jnp.float32) * rates[None, None]
  return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(
    *positions.shape, size
  )
