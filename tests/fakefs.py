"""A remote store in memory, at fake://: no append, no rename, no lock, no folders.

    epath.Path('fake://bucket/run') works once this module is imported.

A file appears whole when it is closed; a folder exists while it holds files.
`STORE` maps paths to bytes; `clear()` empties it.
"""

import errno
import io
import os
import sys
from typing import Any

from etils import epath
from etils.epath import backend, gpath, stat_utils

STORE: dict[str, bytes] = {}
_FIRST = '/fake/'


def clear() -> None:
  STORE.clear()


def _refuse(what: str) -> Any:
  raise OSError(errno.ENOTSUP, f'the store has no {what}')


class _File(io.BytesIO):
  def __init__(self, path: str):
    super().__init__()
    self._path = path

  def close(self) -> None:
    if not self.closed:
      STORE[self._path] = self.getvalue()
    super().close()


class _Backend(backend.Backend):
  def open(self, path, mode):
    path = os.fspath(path)
    if 'a' in mode or '+' in mode:
      _refuse('append')
    if 'w' in mode:
      file = _File(path)
    elif path in STORE:
      file = io.BytesIO(STORE[path])
    else:
      raise FileNotFoundError(errno.ENOENT, 'not in the store', path)
    return file if 'b' in mode else io.TextIOWrapper(file, encoding='utf-8')

  def exists(self, path):
    return os.fspath(path) in STORE or self.isdir(path)

  def isdir(self, path):
    return any(name.startswith(f'{os.fspath(path)}/') for name in STORE)

  def listdir(self, path):
    start = f'{os.fspath(path)}/'
    return sorted({n[len(start) :].split('/')[0] for n in STORE if n.startswith(start)})

  def glob(self, path):
    return _refuse('glob')

  def walk(self, top, *, top_down=True, on_error=None):
    return _refuse('walk')

  def makedirs(self, path, *, exist_ok=False, mode=None):
    pass

  def mkdir(self, path, *, exist_ok=False, mode=None):
    pass

  def rmtree(self, path):
    names = [name for name in STORE if name.startswith(f'{os.fspath(path)}/')]
    if not names:
      raise FileNotFoundError(errno.ENOENT, 'not in the store', path)
    for name in names:
      del STORE[name]

  def remove(self, path):
    if STORE.pop(os.fspath(path), None) is None:
      raise FileNotFoundError(errno.ENOENT, 'not in the store', path)

  def rename(self, path, dst):
    _refuse('rename')

  def replace(self, path, dst):
    _refuse('rename')

  def copy(self, path, dst, overwrite):
    STORE[os.fspath(dst)] = STORE[os.fspath(path)]

  def stat(self, path):
    if os.fspath(path) not in STORE:
      raise FileNotFoundError(errno.ENOENT, 'not in the store', path)
    length = len(STORE[os.fspath(path)])
    return stat_utils.StatResult(is_directory=False, length=length, mtime=0)


_BACKEND = _Backend()


def _parts(parts: tuple[Any, ...]) -> str:
  return '/'.join(map(os.fspath, parts)).replace('fake://', _FIRST, 1)


@epath.register_path_cls('fake://')
class FakePath(gpath.PosixGPath):
  """A path in the store."""

  if sys.version_info < (3, 12):

    def __new__(cls, *parts):
      return super().__new__(cls, _parts(parts))

  else:

    def __init__(self, *parts):
      super().__init__(_parts(parts))

  @property
  def _uri_scheme(self):
    return 'fake'

  @property
  def _backend(self):
    return _BACKEND
