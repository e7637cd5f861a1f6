"""From names and patterns to files: what a user writes for his data.

A file, a folder, a glob, or several of them separated by commas.
"""

import difflib
import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence

from etils import epath

from gptjax.sources.files import FOREIGN, PACKED, is_remote, opened
from gptjax.words import Mistake

_HEAD = 8192  # Bytes at a file's start that show whether it is text.
_FORMATS = {
  '.jsonl': 'jsonl',
  '.ndjson': 'jsonl',
  '.json': 'jsonl',
  '.parquet': 'parquet',
}


def format_of(path: str) -> str:
  """jsonl, parquet or text, by the suffix in front of .gz, .xz or .bz2."""
  stem, suffix = os.path.splitext(path.lower())
  if suffix in (*PACKED, *FOREIGN):
    suffix = os.path.splitext(stem)[1]
  return _FORMATS.get(suffix, 'text')


def find(path: str | Sequence[str]) -> list[str]:
  """The files that `path` names, in order of their names within each pattern.

  path: a file, a folder (its files at any depth but hidden and binary ones), a glob
    (`**` crosses folders), or several of them separated by commas; a sequence of
    strings is taken as the names of files.

  Raises:
    Mistake: a part that names no file: the folder searched, the nearest name there.
  """
  if not path or not set(path) - {' ', ','}:
    raise Mistake(
      'no path given: a file, a folder, or a pattern such as notes/**/*.md.'
    )
  if not isinstance(path, str):
    return list(path)
  # A name with a comma or a bracket in it is a name first.
  parts = [path] if _exists(path) else [p.strip() for p in path.split(',') if p.strip()]
  found: dict[str, None] = {}
  for part in parts:
    found.update(dict.fromkeys(_find_one(os.path.expanduser(part))))
  return list(found)


def _exists(path: str) -> bool:
  return epath.Path(path).exists() if is_remote(path) else os.path.exists(path)


def _find_one(path: str) -> list[str]:
  if is_remote(path):
    return _find_remote(path)
  if os.path.isdir(path):
    files = sorted(f for f in _walk(path) if _is_text(f))
    if not files:
      raise Mistake(f'no text file in folder {os.path.abspath(path)}.')
    return files
  if os.path.exists(path):
    return [path]
  files = sorted(f for f in glob.glob(path, recursive=True) if os.path.isfile(f))
  if not files:
    raise Mistake(f'no file matches {path}: {_nearest_name(path)}')
  return files


def _walk(folder: str) -> Iterator[str]:
  for top, folders, names in os.walk(folder):
    folders[:] = [f for f in folders if not f.startswith('.') and f != '__pycache__']
    yield from (os.path.join(top, n) for n in names if not n.startswith('.'))


def _is_text(path: str) -> bool:
  """Whether a file met in a folder is meant: no NUL at its start, or a known suffix."""
  suffix = os.path.splitext(path.lower())[1]
  if suffix in PACKED:
    return '.tar' not in path.lower()
  if suffix in _FORMATS:
    return True
  if suffix in FOREIGN:  # Reading says what to do, but for archives of anything.
    return suffix not in ('.zip', '.7z')
  if not os.path.isfile(path):  # A socket, a broken link.
    return False
  with opened(path) as file:
    head = file.read(_HEAD)
  return b'\0' not in head or head[:2] in (b'\xff\xfe', b'\xfe\xff')


def _find_remote(path: str) -> list[str]:
  root = epath.Path(path)
  if root.is_dir():
    files = list(_walk_remote(root))
  elif root.exists():
    files = [root]
  else:
    parts = path.split('/')
    plain = next((i for i, p in enumerate(parts) if glob.has_magic(p)), len(parts) - 1)
    files = list(_match_remote(epath.Path('/'.join(parts[:plain])), parts[plain:]))
  if not files:
    raise Mistake(f'no file matches {path}.')
  return sorted({str(f) for f in files})


def _walk_remote(folder: epath.Path) -> Iterator[epath.Path]:
  return _match_remote(folder, ['**', '*'])


def _match_remote(folder: epath.Path, parts: list[str]) -> Iterator[epath.Path]:
  """Files below `folder` by a glob's parts; not every store has a glob of its own."""
  first, *rest = parts
  if first == '**' and rest:
    yield from _match_remote(folder, rest)
  for path in folder.iterdir() if folder.is_dir() else ():
    hidden = path.name.startswith('.') and not first.startswith('.')
    if hidden or not (first == '**' or fnmatch.fnmatchcase(path.name, first)):
      continue
    if path.is_dir():
      deeper = parts if first == '**' else rest
      yield from _match_remote(path, deeper) if deeper else ()
    elif not rest:
      yield path


def _nearest_name(path: str) -> str:
  """Which folder was searched, and the name there that was perhaps meant."""
  folder, rest = os.path.abspath(os.curdir), path
  if os.path.isabs(path):
    folder, rest = os.sep, path.lstrip(os.sep)
  parts = rest.split(os.sep)
  while len(parts) > 1 and os.path.isdir(os.path.join(folder, parts[0])):
    folder = os.path.normpath(os.path.join(folder, parts.pop(0)))
  try:
    names = sorted(os.listdir(folder))
  except OSError as error:
    return f'folder {folder} cannot be read: {error.strerror}.'
  line = f'searched folder {folder}'
  close = difflib.get_close_matches(parts[0], names, n=1, cutoff=0.5)
  if close:
    return f'{line}; did you mean {close[0]!r}?'
  shown = ', '.join(names[:8]) + (', ...' if len(names) > 8 else '')
  return f'{line}, which holds {shown}.' if names else f'{line}, which is empty.'
