"""Dropout (Srivastava et al. 2014) and noise whose draws belong to rows, not a batch.

A row draws with its number within the whole update, so neither micro-batches nor
devices change what is dropped.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def dropout(x: Array, rate: float, key: Array | None, rows: Array) -> Array:
  """x [B, ...] with a share `rate` zeroed and the rest scaled up; no key: x."""
  if key is None or not rate:
    return x
  return drop(x, rate, _row_keys(key, rows))


def drop(x: Array, rate: float, keys: Array) -> Array:
  """The same with a key [B] for each row."""
  keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape[1:]))(keys)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def noise(
  alpha: float, key: Array, rows: Array, segments: Any, shape: Sequence[int]
) -> Array:
  """Noise for embeddings [B, T, D]: NEFTune, Jain et al. 2023, section 2.

  Uniform in +- alpha / sqrt(L D), with L the tokens of the row that are no padding:
  all of them where segments [B, T] are None.
  """
  (B, T, D), draw = shape, jax.random.uniform
  found = jax.vmap(lambda k: draw(k, (T, D), minval=-1, maxval=1))(_row_keys(key, rows))
  real = jnp.full((B,), T) if segments is None else jnp.sum(segments != 0, 1)
  size = alpha * jax.lax.rsqrt(jnp.maximum(real, 1) * jnp.float32(D))
  return found * size[:, None, None]


def _row_keys(key: Array, rows: Array) -> Array:
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
