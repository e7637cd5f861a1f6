"""Low-rank adapters (Hu et al. 2021): small trees that stand over a frozen base.

An adapter of a product inside a layer holds a [R, inputs ..., r] and b [R, r, outputs
...]; the weight it stands for is w + scale * a b.

Letters: R repeats of a layer group, B rows, r rank.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gptjax import tree
from gptjax.models.layers import cut
from gptjax.models.linear import Lora
from gptjax.words import Mistake, Params, Tree

_SITE = 1 << 20  # Of the adapters' draws, past the layers that draw from the same key.


def assemble(
  base: Params,
  params: Params,
  key: Array | None = None,
  rows: Array | None = None,
  *,
  scale: float = 1.0,
  dropout: float = 0.0,
) -> Params:
  """The whole tree: `params` over `base`; with a key, adapters drop of their input.

  Args:
    base: what is not trained.
    params: what is, adapters among them.
    key: of the draws; None: nothing is dropped.
    rows: [B] rows within the whole update, which key the draws.
    scale: of the adapters.
    dropout: share of an adapter's input that is zeroed.
  """
  if key is not None and rows is not None and dropout:
    params = _with_keys(params, jax.random.fold_in(key, _SITE), rows)
  return overlay(base, params, scale=scale, dropout=dropout)


def _with_keys(params: Params, key: Array, rows: Array) -> Params:
  """Every adapter with the keys [R, B] of its draws in each layer and row."""
  found = tree.paths(params)
  for n, path in enumerate([path for path in found if path.endswith('/a')]):
    own = jax.random.fold_in(key, n)
    layers = jax.vmap(lambda r, own=own: jax.random.fold_in(own, r))
    by_row = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    keys = by_row(layers(jnp.arange(len(found[path]))), rows)
    found[f'{path.removesuffix("a")}keys'] = keys
  return tree.nested(found)


def is_adapted(leaf: Any) -> bool:
  """Whether a leaf is a weight with its adapter."""
  return isinstance(leaf, Lora)


def overlay(base: Any, params: Any, **settings: float) -> Any:
  """The whole tree: `params` over `base`.

  Where params holds {'a', 'b'} over a leaf of base, that is a Lora with the settings;
  other leaves replace the base's or come on top of them. A layer group of base may be a
  list of its layers.
  """
  if isinstance(params, Mapping) and isinstance(base, list):
    layers = zip(base, cut(params, len(base)), strict=True)
    return [overlay(one, own, **settings) for one, own in layers]
  if isinstance(params, Mapping) and isinstance(base, Mapping):
    merged = dict(base)
    for name, own in params.items():
      merged[name] = overlay(base[name], own, **settings) if name in base else own
    return merged
  if isinstance(params, Mapping) and set(params) >= {'a', 'b'}:
    return Lora(base, **params, **settings)
  return params


def products(axes: Tree) -> dict[str, int]:
  """Paths of the products inside layers, and of each how many axes are its inputs.

  They are known by their logical axes: the trunk's on one side, others on the other.
  """
  found = {}
  names = tree.paths(axes, is_leaf=lambda x: isinstance(x, tuple))
  for path, (first, *own) in ((p, n) for p, n in names.items() if n):
    if first == 'layers' and len(own) > 1 and 'embed' in (own[0], own[-1]):
      found[path] = 1 if own[0] == 'embed' else len(own) - 1
  return found


def chosen(axes: Tree, patterns: Sequence[str]) -> dict[str, int]:
  """The products that patterns select, as `products` gives them.

  Raises:
    Mistake: a pattern matches no product, or some layers only of a stacked one.
  """
  known = products(axes)
  unused = set(patterns)
  found = {}
  for path, inputs in known.items():
    hits = [p for p in patterns if tree.matches(path, p)]
    unused.difference_update(hits)
    if hits:
      found[path] = inputs
  if unused or not found:
    names = ', '.join(sorted({path.rsplit('/', 1)[-1] for path in known}))
    raise Mistake(
      f'c.lora.targets: no product of the layers matches {sorted(unused)}: {names}.'
    )
  return found


def adapters(key: Array, base: Params, targets: Mapping[str, int], rank: int) -> Params:
  """Adapters over the `chosen` products of `base`.

  `a` is drawn with 1 / sqrt(inputs), `b` is zero, so that nothing changes at first.
  """
  leaves, key = tree.paths(base), jax.random.fold_in(key, _SITE)
  found = {}
  for number, (path, n) in enumerate(targets.items()):
    (layers, *sizes), own = leaves[path].shape, jax.random.fold_in(key, number)
    a = jax.random.normal(own, (layers, *sizes[:n], rank)) / math.prod(sizes[:n]) ** 0.5
    found |= {f'{path}/a': a, f'{path}/b': jnp.zeros((layers, rank, *sizes[n:]))}
  return tree.nested(found)


def adapter_axes(axes: Tree, targets: Mapping[str, int]) -> Tree:
  """Names of the axes of what `adapters` draws."""
  names = tree.paths(axes, is_leaf=lambda x: isinstance(x, tuple))
  found = {}
  for path, n in targets.items():
    layers, *own = names[path]
    found[f'{path}/a'] = (layers, *own[:n], None)
    found[f'{path}/b'] = (layers, None, *own[n:])
  return tree.nested(found)


def merge(whole: Params) -> Params:
  """The same tree with every adapter multiplied into its weight, in its dtype."""

  def one(leaf: Any) -> Any:
    if not is_adapted(leaf):
      return leaf
    layers, rank = leaf.b.shape[:2]
    a, b = leaf.a.reshape(layers, -1, rank), leaf.b.reshape(layers, rank, -1)
    low = jnp.einsum('RIr,RrO->RIO', a, b, preferred_element_type=jnp.float32)
    sum_ = leaf.w.astype(jnp.float32) + leaf.scale * low.reshape(leaf.w.shape)
    return sum_.astype(leaf.w.dtype)

  return jax.tree.map(one, whole, is_leaf=is_adapted)
