"""Files of a run, local or remote (gs://, ...), through etils.epath.

A remote store is taken to have no append, no rename and no lock: a file appears whole
when it is closed, and a folder exists while it holds files. Nothing here asks for more.
"""

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Generator
from typing import Any

from etils import epath

from gptjax.words import Failure

_CHUNK = 1 << 22  # Bytes copied at a time.
_CAUSES = (
  'No space left on device',
  'Disk quota exceeded',
  'Read-only file system',
  'Permission denied',
  'Not a directory',
  'File too large',
  'Input/output error',
)


def say(line: str) -> None:
  """A line for the user on stderr: the default of every `say` argument."""
  print(line, file=sys.stderr, flush=True)


def is_local(path: epath.PathLike) -> bool:
  """Whether the kernel knows the path: append, rename and lock work there."""
  return '://' not in os.fspath(path)


def absolute(path: epath.PathLike) -> epath.Path:
  """The path from the root, if it is local."""
  return epath.Path(os.path.abspath(path) if is_local(path) else path)


def write(path: epath.Path, data: str | bytes) -> None:
  """Writes a file as a whole: a kill leaves the old one or the new one.

  Raises:
    OSError: what the file system says.
  """
  data = data.encode() if isinstance(data, str) else data
  if not is_local(path):
    path.write_bytes(data)
    return
  part = path.parent / f'.{path.name}.part'
  try:
    with open(part, 'wb') as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
    os.replace(part, path)
  except OSError:
    part.unlink(missing_ok=True)
    raise


def under(folder: epath.Path) -> dict[str, epath.Path]:
  """All files below a folder, by their path relative to it ('state/d/1f3'), sorted."""
  found = {}
  for path in folder.iterdir():
    if path.is_dir():
      found.update({f'{path.name}/{k}': v for k, v in under(path).items()})
    else:
      found[path.name] = path
  return dict(sorted(found.items()))


def sha256(path: epath.Path) -> str:
  """The sum (hex) over a file's bytes."""
  total = hashlib.sha256()
  with path.open('rb') as f:
    while block := f.read(_CHUNK):
      total.update(block)
  return total.hexdigest()


def copy(source: epath.Path, target: epath.Path) -> None:
  """Copies one file between any two stores, making the folder it goes to."""
  target.parent.mkdir(parents=True, exist_ok=True)
  with source.open('rb') as f, target.open('wb') as g:
    shutil.copyfileobj(f, g, _CHUNK)


def copy_tree(source: epath.Path, target: epath.Path) -> None:
  """Copies all files below a folder, in the order of their names."""
  for name, path in under(source).items():
    copy(path, target / name)


def move(source: epath.Path, target: epath.Path) -> None:
  """Moves a folder: renamed where the kernel can, else copied and then removed."""
  target.parent.mkdir(parents=True, exist_ok=True)
  if is_local(source):
    os.rename(source, target)
  else:
    copy_tree(source, target)
    source.rmtree()


def free_name(path: epath.Path) -> epath.Path:
  """The first of NAME.1, NAME.2, ... that is not taken."""
  n = 1
  while (found := path.parent / f'{path.name}.{n}').exists():
    n += 1
  return found


def cause(error: BaseException) -> str:
  """Why a write or a read failed, in a few words."""
  text = str(error)
  for known in _CAUSES:
    if known in text:
      return known
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  first = text.strip().splitlines()[:1]
  return f'{type(error).__name__}: {first[0][:200] if first else "no message"}'


@contextlib.contextmanager
def reporting(what: str, hint: str = '') -> Generator[Any]:
  """Turns an OSError of the block into a Failure of one line: what, and its cause."""
  try:
    yield
  except OSError as error:
    raise Failure(f'{what}: {cause(error)}.{hint and " " + hint}') from error
