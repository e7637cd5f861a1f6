"""Nested dicts of arrays: leaves by path, selection by pattern, counts, norms, digests.

A path is the keys joined by '/'. Layers are stored in groups that are stacked over
repeats: the key '1:12:2' under 'layers' holds layers 1, 3, ... 11 along axis 0.
Patterns, imports and reports use the canonical name of each layer, such as
'layers/7/attention/query'.
"""

import fnmatch
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from gptjax.words import Array, Mistake, Tree


def paths(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
  """Leaves by path, in the order of jax.tree.leaves."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
  return {_join(path): leaf for path, leaf in flat}


def _join(path: Iterable[Any]) -> str:
  return '/'.join(jax.tree_util.keystr((key,), simple=True) for key in path)


def map_paths(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
  """jax.tree.map of function(path, leaf, ...)."""
  return jax.tree_util.tree_map_with_path(
    lambda path, *leaves: function(_join(path), *leaves), tree, *rest
  )


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
  """{'a/b': x} -> {'a': {'b': x}}, in the order of jax.tree.leaves."""
  found: dict[str, Any] = {}
  for path, leaf in sorted(flat.items()):
    *keys, last = path.split('/')
    node = found
    for key in keys:
      node = node.setdefault(key, {})
    node[last] = leaf
  return found


def canonical(path: str) -> list[str]:
  """Per-layer names of a stored path: one, or as many as its group has repeats.

  'layers/0:4:2/mlp/up' -> ['layers/0/mlp/up', 'layers/2/mlp/up'].
  """
  keys = path.split('/')
  for i, key in enumerate(keys):
    if i and keys[i - 1] == 'layers' and key.count(':') == 2:
      layers = range(*map(int, key.split(':')))
      return ['/'.join([*keys[:i], str(n), *keys[i + 1 :]]) for n in layers]
  return [path]


def layers(tree: Tree) -> dict[str, Array]:
  """Leaves by canonical name, stacked ones cut into their layers."""
  found = {}
  for path, leaf in paths(tree).items():
    names = canonical(path)
    cut = [leaf] if names == [path] else [leaf[i] for i in range(len(names))]
    found.update(zip(names, cut, strict=True))
  return found


def matches(path: str, pattern: str) -> bool:
  """Whether a pattern covers a stored path: shell wildcards against canonical names.

  A pattern without '/' also matches any single key: 'bias' covers '.../query/bias'.

  Raises:
    Mistake: the pattern covers some repeats of a stacked leaf, but not all.
  """
  hits = [_covers(pattern, name) for name in canonical(path)]
  if any(hits) and not all(hits):
    raise Mistake(
      f'pattern {pattern!r} splits the stacked leaf {path!r}: it matches '
      f'{sum(hits)} of {len(hits)} layers; name all of them, or none.'
    )
  return all(hits)


def _covers(pattern: str, name: str) -> bool:
  keys = [] if '/' in pattern else name.split('/')
  return any(fnmatch.fnmatchcase(n, pattern) for n in (name, *keys))


def select(
  tree: Tree,
  patterns: Mapping[str, Any] | Iterable[str],
  where: str,
  default: Callable[[str], Any] = lambda path: None,
) -> Tree:
  """For each leaf the value of the first pattern that matches it, else its default.

  A list of patterns stands for {pattern: True}. Where numbers differ between the layers
  of a stacked leaf [R, ...], its value is a float32 array [R, 1, ...] of as many axes.

  Args:
    tree: arrays, or their shapes.
    patterns: values by pattern, or patterns.
    where: the config key, for mistakes.
    default: the value of a leaf (by its stored path) that no pattern matches.

  Raises:
    Mistake: a pattern matches no leaf, or values other than numbers differ between the
      layers of a stacked leaf.
  """
  table = patterns if isinstance(patterns, Mapping) else dict.fromkeys(patterns, True)
  unused = set(table)

  def find(path: str, leaf: Any) -> Any:
    names = canonical(path)
    hits = [[p for p in table if _covers(p, name)] for name in names]
    unused.difference_update(*hits)
    values = [table[found[0]] if found else default(path) for found in hits]
    if all(value == values[0] for value in values):
      return values[0]
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
      raise Mistake(
        f'{where} splits the stacked leaf {path!r}: its patterns match '
        f'{sum(map(bool, hits))} of {len(hits)} layers; name all of them, or none.'
      )
    return np.asarray(values, np.float32).reshape(-1, *(1,) * (len(leaf.shape) - 1))

  found = map_paths(find, tree)
  if unused:
    first = ', '.join(list(paths(tree))[:8])
    raise Mistake(f'{where}: no leaf matches {sorted(unused)}. Leaves: {first}, ...')
  return found


def count(tree: Tree) -> int:
  """Numbers in all leaves."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def size(tree: Tree) -> int:
  """Bytes of all leaves."""
  leaves = jax.tree.leaves(tree)
  return sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in leaves)


def norm(tree: Tree) -> Array:
  """Euclidean norm over all leaves, in float32."""
  squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
  return jnp.sqrt(sum(squares, jnp.float32(0)))


def digest(tree: Tree) -> str:
  """sha256 (hex) over paths, dtypes, shapes and bytes of all leaves."""
  total = hashlib.sha256()
  for path, leaf in sorted(paths(tree).items()):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    leaf = np.ascontiguousarray(_whole(leaf))
    total.update(f'{path} {leaf.dtype} {leaf.shape}\n'.encode())
    total.update(leaf.reshape(-1).view(np.uint8).data)
  return total.hexdigest()


def _whole(leaf: Array) -> Array:
  """The array, gathered where it lies on several hosts."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    return multihost_utils.process_allgather(leaf, tiled=True)
  return leaf
