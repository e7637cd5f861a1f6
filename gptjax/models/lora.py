"""Low-rank adapters (Hu et al. 2021): small trees that stand over a frozen base."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gptjax import tree
from gptjax.models.linear import Lora
from gptjax.words import Mistake, Params, Tree

_PAIR = {'a', 'b'}


def overlay(base: Params, params: Params, scale: float = 1.0) -> Params:
  """The whole tree: `params` over `base`.

  Where params holds {'a', 'b'} over a leaf of base, that is a Lora with `scale`; other
  leaves replace the base's or come on top of them.
  """
  if isinstance(params, Mapping) and isinstance(base, Mapping):
    merged = dict(base)
    for name, value in params.items():
      merged[name] = overlay(base[name], value, scale) if name in base else value
    return merged
  if isinstance(params, Mapping) and set(params) == _PAIR:
    return Lora(base, params['a'], params['b'], scale)
  return params


def adapters(
  key: Array, base: Params, axes: Tree, patterns: list[str], rank: int
) -> tuple[Params, Tree]:
  """Adapters for the leaves of `base` that patterns select, and their axes' names.

  `a` is drawn with 1 / sqrt(inputs), `b` is zero, so that nothing changes at first.

  Raises:
    Mistake: a pattern matches no leaf, or one that is no product of layers.
  """
  chosen = tree.paths(tree.select(base, patterns, 'c.lora'))
  names = tree.paths(axes, is_leaf=lambda x: isinstance(x, tuple))
  leaves = tree.paths(base)
  params: Params = {}
  found: Params = {}
  for number, path in enumerate(chosen):
    w, outer = leaves[path], names[path]
    if outer[0] != 'layers' or len(outer) < 3:
      raise Mistake(f'c.lora: {path} is no product inside a layer.')
    n = len(outer) - 1 if outer[-1] == 'embed' else 2
    inputs, outputs = w.shape[1:n], w.shape[n:]
    a = jax.random.normal(jax.random.fold_in(key, number), (*w.shape[:n], rank))
    a = a / jnp.sqrt(jnp.prod(jnp.array(inputs)))
    pair = {'a': a, 'b': jnp.zeros((w.shape[0], rank, *outputs))}
    _put(params, path, pair)
    _put(found, path, {'a': (*outer[:n], None), 'b': ('layers', None, *outer[n:])})
  return params, found


def _put(nested: dict[str, Any], path: str, value: Any) -> None:
  *keys, last = path.split('/')
  for key in keys:
    nested = nested.setdefault(key, {})
  nested[last] = value
