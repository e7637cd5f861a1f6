"""Hugging Face datasets: from the hub's cache, the hub, or a folder of save_to_disk.

Source: https://huggingface.co/docs/datasets
"""

import functools
import hashlib
import os
from typing import Any

from gptjax.sources import records
from gptjax.sources.files import CHUNK
from gptjax.sources.records import Records
from gptjax.words import Mistake


def hf(name: str, split: str = 'train') -> Records:
  """Records of a data set; needs the extra gptjax[hf].

  name: a folder written by save_to_disk, else the hub's name, 'owner/set' or
    'owner/set:config'.
  split: of that set, slices such as 'train[:10%]' included (not for a folder).

  Raises:
    Mistake: the extra is missing, or no such set, config or split.
  """
  try:
    import datasets  # ty: ignore[import-not-found]
  except ImportError:
    raise Mistake(
      f'hf:{name} needs the package datasets: pip install "gptjax[hf]".'
    ) from None
  try:
    if os.path.isdir(name):
      rows = datasets.load_from_disk(name)
      rows = rows[split] if isinstance(rows, dict) else rows
    else:
      owner, _, config = name.partition(':')
      rows = datasets.load_dataset(owner, config or None, split=split)
  except Exception as error:  # Of many kinds: network, names, builders.
    why = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
    raise Mistake(f'hf:{name}@{split} cannot be loaded: {why}') from None
  return records.not_empty(
    Records(
      size=len(rows),
      read=functools.partial(_read, rows),
      place=functools.partial(_place, f'hf:{name}@{split}'),
      digest=_digest(rows),
    ),
    f'hf:{name}@{split}',
  )


def _read(rows: Any, index: int) -> dict[str, Any]:
  return rows[index]


def _place(title: str, index: int) -> str:
  return f'{title}:{index + 1}'


def _digest(rows: Any) -> str:
  """sha256 (hex) of the set's Arrow files and of which of their rows are taken.

  The set's own fingerprint holds names and paths, so it differs between machines.
  """
  total = hashlib.sha256(f'hf {len(rows)}'.encode())
  for cached in rows.cache_files:
    with open(cached['filename'], 'rb') as file:
      while data := file.read(CHUNK):
        total.update(data)
  for row in rows if not rows.cache_files else (rows[0], rows[len(rows) - 1]):
    total.update(repr(sorted(row.items())).encode())
  return total.hexdigest()
