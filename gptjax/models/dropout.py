"""Dropout (Srivastava et al. 2014) whose draw belongs to a row, not to a batch.

A row draws with its number within the whole update, so neither micro-batches nor
devices change what is dropped.
"""

import jax
import jax.numpy as jnp
from jax import Array


def dropout(x: Array, rate: float, key: Array | None, rows: Array) -> Array:
  """x [B, ...] with a share `rate` zeroed and the rest scaled up; no key: x."""
  if key is None or not rate:
    return x
  return drop(x, rate, jax.vmap(lambda row: jax.random.fold_in(key, row))(rows))


def drop(x: Array, rate: float, keys: Array) -> Array:
  """The same with a key [B] for each row."""
  keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape[1:]))(keys)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
