"""The manifest of a checkpoint: what makes a step count, and shows any flipped bit.

`MANIFEST.json` is the last file of a step to be written. It holds the sha256 sum and
the size of every other file of the step, made from the bytes as written, the shape and
dtype of every leaf, and a digest of itself.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from gptjax import files
from gptjax.tree import paths
from gptjax.words import Failure, Mistake, Tree

NAME = 'MANIFEST.json'
FORMAT = 1
_ARRAY, _BYTES = '__array__', '__bytes__'


class Damaged(Exception):  # noqa: N818
  """A step is not as it was written; says what is wrong."""


def write(place: epath.Path, step: int, leaves: Mapping[str, Any]) -> None:
  """Sums up all files below a step's folder and commits the step."""
  sums = {
    name: {'size': path.stat().length, 'sha256': files.sha256(path)}
    for name, path in files.under(place).items()
  }
  found = {'format': FORMAT, 'step': step, 'files': sums, 'leaves': dict(leaves)}
  files.write(place / NAME, sealed(found))


def read(place: epath.Path) -> dict[str, Any]:
  """The manifest, checked against its own digest to the byte.

  Raises:
    Damaged: it is missing, or not as it was written.
    Failure: a newer version of this code wrote it.
  """
  found = unsealed(place / NAME)
  if found['format'] > FORMAT:
    raise Failure(f'{place / NAME} is of format {found["format"]}; known: {FORMAT}.')
  return found


def check(place: epath.Path, found: Mapping[str, Any]) -> None:
  """Sums up the files again.

  Raises:
    Damaged: a file is missing, cut or altered.
  """
  for name, entry in found['files'].items():
    path = place / name
    try:
      if path.stat().length != entry['size']:
        raise Damaged(f'{name} has another size than was written')
      if files.sha256(path) != entry['sha256']:
        raise Damaged(f'{name} is not as it was written')
    except OSError as error:
      raise Damaged(f'{name}: {files.cause(error)}') from error


def sealed(found: Mapping[str, Any]) -> str:
  """JSON text with the sha256 sum (hex) of itself at its end."""
  digest = hashlib.sha256(json.dumps(found, indent=1).encode()).hexdigest()
  return json.dumps({**found, 'digest': digest}, indent=1) + '\n'


def unsealed(path: epath.Path) -> dict[str, Any]:
  """Reads what `sealed` wrote.

  Raises:
    Damaged: the file is missing, or any byte differs.
  """
  try:
    text = path.read_text()
    found = json.loads(text)
    del found['digest']
    whole = sealed(found) == text
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise Damaged(f'{path.name} cannot be read') from error
  if not whole:
    raise Damaged(f'{path.name} is not as it was written')
  return found


def encode(tree: Tree) -> Any:
  """Dicts, lists, numbers, strings, bytes and arrays as what JSON can hold.

  Raises:
    TypeError: something else is in it.
  """
  if isinstance(tree, Mapping):
    if not all(isinstance(key, str) for key in tree):
      raise TypeError(f'keys are strings, not {sorted(map(repr, tree))}')
    return {key: encode(value) for key, value in tree.items()}
  if isinstance(tree, list | tuple):
    return [encode(value) for value in tree]
  if isinstance(tree, bytes):
    return {_BYTES: base64.b64encode(tree).decode()}
  if isinstance(tree, jax.Array | np.ndarray | np.generic):
    array = np.asarray(tree)
    text = base64.b64encode(array.tobytes()).decode()
    return {_ARRAY: text, 'dtype': array.dtype.name, 'shape': list(array.shape)}
  if tree is None or isinstance(tree, bool | int | float | str):
    return tree
  raise TypeError(f'no {type(tree).__name__} in a saved state')


def decode(tree: Any) -> Tree:
  """Undoes encode; tuples come back as lists."""
  if isinstance(tree, list):
    return [decode(value) for value in tree]
  if not isinstance(tree, dict):
    return tree
  if _BYTES in tree:
    return base64.b64decode(tree[_BYTES])
  if _ARRAY in tree:
    flat = np.frombuffer(base64.b64decode(tree[_ARRAY]), np.dtype(tree['dtype']))
    return flat.reshape(tree['shape']).copy()
  return {key: decode(value) for key, value in tree.items()}


# Leaves.


def described(leaf: Any) -> Any:
  """A leaf with a shape and a dtype: a bare number becomes an array."""
  return leaf if hasattr(leaf, 'dtype') else np.asarray(leaf)


def compare(
  place: epath.Path, leaves: dict[str, Any], abstract: Tree, whole: bool
) -> None:
  """Whether a step has the leaves that are wanted, and with `whole` no others.

  Orbax would cast another dtype without a word.

  Raises:
    Mistake: it has not, with the names of the leaves.
  """
  wrong = []
  wanted = {path: described(leaf) for path, leaf in paths(abstract).items()}
  for path, leaf in wanted.items():
    here = f'{leaf.dtype}{list(leaf.shape)}'
    there = leaves.get(path)
    there = there and f'{there["dtype"]}{there["shape"]}'
    if here != there:
      wrong.append(f'{path} is {there or "not there"}, wanted {here}')
  if whole:
    wrong += [f'{path} is not wanted' for path in leaves if path not in wanted]
  if wrong:
    more = f'; and {len(wrong) - 5} more' if len(wrong) > 5 else ''
    raise Mistake(
      f'checkpoint {place} does not fit this config: {"; ".join(wrong[:5])}{more}.'
    )
