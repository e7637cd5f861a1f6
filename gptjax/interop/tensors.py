"""Tensors of others and our leaves: one table, read in both directions.

A row of a family's table names a tensor, the leaf that holds it and the letters of its
axes; axes written together are one axis of the tensor:

  Row('model.layers.{}.self_attn.q_proj.weight', 'layers/{}/attention/query', 'HK D')

From the leaf's own letters (query is [D, H, K]) follow the transpositions both ways. A
tensor that holds several leaves, joined along an axis, has '|' between them there.

Letters: words.py; P, J halves of a head and places in a half, where they interleave.
"""

import fnmatch
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from gptjax import tree
from gptjax.models.settings import Settings
from gptjax.words import Mistake, Params, Tree

# Axes of a layer's leaves, without that of the repeats, and of the others.
LEAVES = {
  'embed/tokens': 'VD',
  'embed/positions': 'SD',
  'attention/query': 'DHK',
  'attention/key': 'DGK',
  'attention/value': 'DGK',
  'attention/out': 'HKD',
  'attention/query_bias': 'HK',
  'attention/key_bias': 'GK',
  'attention/value_bias': 'GK',
  'attention/out_bias': 'D',
  'attention/query_norm': 'K',
  'attention/key_norm': 'K',
  'mlp/gate': 'DF',
  'mlp/up': 'DF',
  'mlp/down': 'FD',
  'mlp/gate_bias': 'F',
  'mlp/up_bias': 'F',
  'mlp/down_bias': 'D',
  'heads/lm': 'DV',
}
DTYPES = {
  'float32': np.dtype(np.float32),
  'float16': np.dtype(np.float16),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
}


class Row(NamedTuple):
  """A tensor and what holds it here; '{}' is the number of the layer."""

  theirs: str
  ours: str
  axes: str

  @property
  def leaves(self) -> list[str]:
    """The leaves that are joined in the tensor."""
    first, *others = self.ours.split('|')
    folder = first.rpartition('/')[0]
    return [first, *(f'{folder}/{name}' for name in others)]

  @property
  def joint(self) -> int:
    """The axis along which they are joined."""
    return next((i for i, a in enumerate(self.axes.split(' ')) if '|' in a), 0)

  @property
  def parts(self) -> list[str]:
    """The axes of each leaf within the tensor."""
    groups = self.axes.split(' ')
    at = self.joint
    own = groups[at].split('|')
    return [' '.join([*groups[:at], one, *groups[at + 1 :]]) for one in own]


class Stored(NamedTuple):
  """A tensor in a file, read when it is asked for."""

  shape: tuple[int, ...]
  dtype: str  # As the file calls it.
  read: Callable[[], np.ndarray]


class Tensor(NamedTuple):
  """A tensor to write; its content is asked for when its turn comes."""

  name: str
  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


def narrowed(tensor: Tensor, dtype: str) -> np.ndarray:
  """The content of a tensor in a dtype, contiguous.

  Raises:
    Mistake: it has numbers that float16 does not reach.
  """
  given = tensor.read()
  with np.errstate(over='ignore'):
    array = np.ascontiguousarray(given, DTYPES[dtype])
  if dtype == 'float16' and (np.isinf(array) & np.isfinite(given)).any():
    raise Mistake(
      f'{tensor.name} has numbers up to {np.abs(given).max():.3g}, which float16 does '
      'not hold: take --dtype=bfloat16 or float32.'
    )
  return array


class Place(NamedTuple):
  """Where one of our leaves, or a layer of it, is in a file."""

  name: str  # Of the tensor.
  row: Row
  part: int  # Which of the leaves that are joined in it.


def sizes(c: Settings) -> dict[str, int]:
  """The size of each letter's axis, the vocabulary without padding."""
  half = dict(P=2, J=c.head // 2)
  small = dict(D=c.embed, H=c.heads, G=c.kv_heads, K=c.head, F=c.mlp, S=c.length)
  return {'V': c.rows or c.vocab, **small, **half}


def places(rows: Iterable[Row], abstract: Tree) -> dict[str, list[Place]]:
  """Of each leaf of a model its places, one for each layer that is stacked in it.

  Raises:
    Mistake: the table has no row for a leaf.
  """
  table = {leaf: (row, part) for row in rows for part, leaf in enumerate(row.leaves)}
  found = {}
  for path in tree.paths(abstract):
    found[path] = []
    for name in tree.canonical(path):
      layer = name.split('/')[1]
      general = name.replace(f'layers/{layer}/', 'layers/{}/')
      if general not in table:
        raise Mistake(f'{general} has no place in such a file.')
      row, part = table[general]
      found[path].append(Place(row.theirs.format(layer), row, part))
  return found


def load(
  rows: Iterable[Row],
  stored: Mapping[str, Stored],
  abstract: Tree,
  c: Settings,
  ignored: Sequence[str] = (),
) -> Params:
  """The weights of a model, float32, each leaf laid out as `abstract` says.

  One leaf after the other is read and laid out, so that the memory taken is that of the
  weights and of one leaf.

  Args:
    rows: the family's table.
    stored: the tensors by name.
    abstract: the model's weights as jax.ShapeDtypeStruct with shardings.
    c: its settings.
    ignored: patterns of tensors that say nothing.

  Raises:
    Mistake: a tensor is missing, left over or of another shape or dtype.
  """
  where, size = places(rows, abstract), sizes(c)
  _check(where, stored, size, ignored)

  def one(path: str, leaf: Any) -> jax.Array:
    stacked = tree.canonical(path) != [path]
    value = _zeros(leaf.shape, leaf.dtype)
    for number, place in enumerate(where[path]):
      array = to_ours(stored[place.name].read(), place, size)
      target = value[number] if stacked else value
      target[tuple(map(slice, array.shape))] = array
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, value.__getitem__)

  return tree.map_paths(one, abstract)


def _zeros(shape: Sequence[int], dtype: Any) -> np.ndarray:
  """Zeros that begin at a multiple of 64 bytes: JAX takes them over on a CPU."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  room = np.zeros(size + 64, np.uint8)
  start = -room.ctypes.data % 64
  return room[start : start + size].view(dtype).reshape(shape)


def _check(
  where: Mapping[str, Sequence[Place]],
  stored: Mapping[str, Stored],
  size: Mapping[str, int],
  ignored: Sequence[str],
) -> None:
  wanted = {place.name: place.row for group in where.values() for place in group}
  missing = [name for name in wanted if name not in stored]
  if missing:
    raise Mistake(f'{_some(missing)} missing, which the config asks for.')
  left = [
    name
    for name in stored
    if name not in wanted and not any(fnmatch.fnmatchcase(name, p) for p in ignored)
  ]
  if left:
    raise Mistake(f'{_some(left)} there, of which the config knows nothing.')
  for name, row in wanted.items():
    shape, found = tensor_shape(row, size), stored[name]
    if tuple(found.shape) != shape:
      raise Mistake(
        f'tensor {name} is {list(found.shape)}; the config makes it {list(shape)}.'
      )


def _some(names: Sequence[str]) -> str:
  first = ', '.join(names[:4])
  if len(names) == 1:
    return f'tensor {first} is'
  more = f' and {len(names) - 4} more' if len(names) > 4 else ''
  return f'tensors {first}{more} are'


def tensor_shape(row: Row, size: Mapping[str, int]) -> tuple[int, ...]:
  """The shape of a row's tensor."""
  shapes = [_part_shape(part, size) for part in row.parts]
  shape, at = shapes[0], row.joint
  return (*shape[:at], sum(s[at] for s in shapes), *shape[at + 1 :])


def _part_shape(part: str, size: Mapping[str, int]) -> tuple[int, ...]:
  axes = part.split(' ')
  return tuple(math.prod(size[letter] for letter in axis) for axis in axes)


def to_ours(array: np.ndarray, place: Place, size: Mapping[str, int]) -> np.ndarray:
  """A tensor as (a layer of) our leaf."""
  row = place.row
  ends = itertools.accumulate(_part_shape(part, size)[row.joint] for part in row.parts)
  array = np.split(array, list(ends)[:-1], row.joint)[place.part]
  letters = row.parts[place.part].replace(' ', '')
  own = _own(row.leaves[place.part], letters)
  array = array.reshape([size[letter] for letter in letters])
  array = array.transpose([letters.index(letter) for letter in own])
  return array.reshape(_merged(array.shape, own))


def to_theirs(
  arrays: Sequence[np.ndarray], row: Row, size: Mapping[str, int]
) -> np.ndarray:
  """Our leaves of a row (a layer of each) as the tensor."""
  parts = []
  for leaf, part, array in zip(row.leaves, row.parts, arrays, strict=True):
    letters = part.replace(' ', '')
    own = _own(leaf, letters)
    array = array[tuple(slice(size[letter]) for letter in _own(leaf, ''))]
    array = array.reshape([size[letter] for letter in own])
    array = array.transpose([own.index(letter) for letter in letters])
    parts.append(array.reshape(_part_shape(part, size)))
  return parts[0] if len(parts) == 1 else np.concatenate(parts, row.joint)


def _own(leaf: str, letters: str) -> str:
  """The axes of a leaf; of a head its two halves where the tensor has them so."""
  own = LEAVES.get(leaf.replace('layers/{}/', ''), 'D')
  return own.replace('K', 'PJ') if 'P' in letters else own


def _merged(shape: Sequence[int], own: str) -> tuple[int, ...]:
  """The shape with the halves of a head as one axis again."""
  if 'PJ' not in own:
    return tuple(shape)
  at = own.index('P')
  return (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])


def tensors(rows: Iterable[Row], weights: Params, c: Settings) -> list[Tensor]:
  """The tensors of the weights, in the order of the table.

  Raises:
    Mistake: the table has no row for a leaf.
  """
  rows = list(rows)
  leaves, size = tree.paths(weights), sizes(c)
  held: dict[str, dict[int, tuple[str, int | None]]] = {}
  table: dict[str, Row] = {}
  for path, group in places(rows, weights).items():
    stacked = tree.canonical(path) != [path]
    for number, place in enumerate(group):
      table[place.name] = place.row
      held.setdefault(place.name, {})[place.part] = (path, number if stacked else None)

  def read(name: str) -> np.ndarray:
    found = [held[name][part] for part in range(len(held[name]))]
    arrays = [
      np.asarray(leaves[path] if number is None else leaves[path][number])
      for path, number in found
    ]
    return to_theirs(arrays, table[name], size)

  def order(name: str) -> tuple[int, int]:
    (path, number), at = held[name][0], rows.index(table[name])
    inside = tree.canonical(path)[number or 0].split('/')[1]
    return (int(inside), at) if inside.isdecimal() else (-1, at)

  return [
    Tensor(name, tensor_shape(table[name], size), functools.partial(read, name))
    for name in sorted(table, key=order)
  ]
