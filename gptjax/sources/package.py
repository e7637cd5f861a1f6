"""Data that a Python package carries: its files are read, its code is not imported."""

import importlib.util
import os

from gptjax.lookup import nearest
from gptjax.sources.jsonl import jsonl
from gptjax.sources.names import format_of
from gptjax.sources.parquet import parquet
from gptjax.sources.records import Records
from gptjax.sources.text import text
from gptjax.words import Mistake

_SUFFIXES = ('.json', '.jsonl', '.parquet', '.txt', '.gz', '.xz', '.bz2')


def package(name: str, file: str = '', on_bad: str = 'error') -> Records:
  """Records of a data file of an installed package.

  name: as one would import it, such as 'chitchat_dataset'.
  file: below the package's folder; '' where there is one data file only.

  Raises:
    Mistake: no such package or file, or several data files and none named.
  """
  path = find_file(name, file)
  read = {'jsonl': jsonl, 'parquet': parquet, 'text': text}[format_of(path)]
  return read([path], on_bad=on_bad)


def find_file(name: str, file: str = '') -> str:
  """The path of a package's data file; see package."""
  # A dotted name would import the packages above it.
  spec = importlib.util.find_spec(name) if name.isidentifier() else None
  if spec is None or not spec.submodule_search_locations:
    raise Mistake(f'no package {name!r} is installed in this Python.')
  folder = next(iter(spec.submodule_search_locations))
  found = sorted(
    os.path.relpath(os.path.join(top, n), folder)
    for top, _, names in os.walk(folder)
    for n in names
    if n.endswith(_SUFFIXES)
  )
  if file and file not in found:
    raise Mistake(f'package {name} has no data file {file!r}: {nearest(file, found)}')
  if not file and len(found) != 1:
    shown = ', '.join(found[:8]) or 'none'
    raise Mistake(f'package {name} needs file= of its data files: {shown}.')
  return os.path.join(folder, file or found[0])
