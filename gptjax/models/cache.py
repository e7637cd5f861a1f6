"""Keys and values of the tokens so far; slot s of row b holds the token at position s.

Letters: R repeats of a group, B rows, T new tokens, S slots, G key heads, K head size.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from gptjax import sharding
from gptjax.models.settings import Settings
from gptjax.models.structure import groups
from gptjax.words import Cache


def new_cache(c: Settings, rows: int, length: int, dtype: Any = None) -> Cache:
  """An empty cache of `length` slots a row, in `dtype` (default: the activations').

  Where layers are unrolled each layer has arrays of its own [B, S, G, K], which are
  updated in place; where they are scanned a group has one [R, B, S, G, K].
  """
  shape = (rows, length, c.kv_heads, c.head)
  names = ('batch', None, 'kv_heads', None)
  dtype = dtype or c.compute

  def empty() -> dict[str, Any]:
    found = {}
    for group in groups(c):
      for name in group.names:
        if c.scanned:
          zeros = jnp.zeros((group.repeats, *shape), dtype)
          found[name] = sharding.shard(zeros, 'layers', *names)
        else:
          layers = [jnp.zeros(shape, dtype) for _ in range(group.repeats)]
          found[name] = tuple(sharding.shard(x, *names) for x in layers)
    return found

  return Cache(empty(), empty(), jnp.zeros((rows,), jnp.int32))


def write(store: Array, new: Array, slots: Array) -> Array:
  """`new` [B, T, G, K] put at slots [B, T] of `store` [B, S, G, K]; those >= S drop."""
  rows = jnp.arange(store.shape[0])[:, None]
  return store.at[rows, slots].set(new.astype(store.dtype), mode='drop')
