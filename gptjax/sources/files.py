"""The bytes of files, read on demand.

Plain local files are memory-mapped. Compressed and remote ones are unpacked once into
one nameless temporary file (in TMPDIR), which is mapped: no corpus is held in memory.
"""

import contextlib
import functools
import hashlib
import importlib
import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from typing import BinaryIO, cast

import numpy as np
from etils import epath

from gptjax.sources.records import pass_over
from gptjax.words import Failure, Mistake

CHUNK = 16 * 2**20  # Bytes looked at together.
_MAPS = 64  # Files mapped at a time: each holds a file descriptor.
PACKED = {'.gz': 'gzip', '.xz': 'lzma', '.bz2': 'bz2'}  # Suffix: module that unpacks.
FOREIGN = {'.zst': 'zstd', '.lz4': 'lz4', '.br': 'brotli', '.zip': 'zip', '.7z': '7z'}


def is_remote(path: str) -> bool:
  """Whether the path goes through epath, such as gs://."""
  return '://' in path


@contextlib.contextmanager
def opened(path: str) -> Generator[BinaryIO]:
  """The file, its bytes unpacked as they are read.

  Raises:
    Mistake: it cannot be read, or is packed in a way that Python cannot unpack.
  """
  suffix = os.path.splitext(path.lower())[1]
  if suffix in FOREIGN:
    raise Mistake(
      f'{path}: {FOREIGN[suffix]} is not read: unpack it, or use .gz or .xz.'
    )
  try:
    file = epath.Path(path).open('rb')
  except OSError as error:
    raise Mistake(f'{path} cannot be read: {error.strerror or error}.') from None
  with file:  # What unpacks does not close what it reads from.
    if suffix not in PACKED:
      yield cast(BinaryIO, file)
      return
    with importlib.import_module(PACKED[suffix]).open(file, 'rb') as unpacked:
      yield unpacked


class Files:
  """The bytes of files by number. Pickles as their names: a process opens its own."""

  def __init__(self, paths: Sequence[str], on_bad: str = 'error'):
    self.paths: list[str] = []
    self.skipped = 0
    self._spans: dict[int, tuple[int, int]] = {}  # File number: where in the spool.
    self._sizes: list[int] = []
    self._spool: mmap.mmap | bytes = b''
    with tempfile.TemporaryFile() as spool:
      for path in paths:
        try:
          self._add(path, spool)
        except Mistake as mistake:
          self.skipped += pass_over(on_bad, Mistake, str(mistake))
      spool.flush()
      if spool.tell():
        self._spool = mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ)
    self._map = functools.lru_cache(_MAPS)(self._open)

  def _add(self, path: str, spool: BinaryIO) -> None:
    if is_remote(path) or path.lower().endswith((*PACKED, *FOREIGN)):
      start, end = _unpack(path, spool)
      self._spans[len(self.paths)] = start, end
      self._sizes.append(end - start)
    else:
      self._sizes.append(_size(path))
    self.paths.append(path)

  def __reduce__(self):
    return _reopen, (self.paths, self._sizes)

  def __len__(self) -> int:
    return len(self.paths)

  def size(self, number: int) -> int:
    """Bytes of a file, unpacked."""
    return self._sizes[number]

  def read(self, number: int, start: int, end: int) -> bytes:
    """Bytes [start, end) of file `number`."""
    data, offset = self._data(number)
    return data[offset + start : offset + end]

  def view(self, number: int, start: int, end: int) -> np.ndarray:
    """Bytes [start, end) of file `number` as uint8, not copied."""
    data, offset = self._data(number)
    return np.frombuffer(data, np.uint8, end - start, offset + start)

  def line(self, number: int, offset: int) -> int:
    """The line, from 1, that byte `offset` of a file is on."""
    cuts = range(0, offset, CHUNK)
    return 1 + sum(
      self.read(number, a, min(a + CHUNK, offset)).count(b'\n') for a in cuts
    )

  def chunks(self, number: int) -> Iterator[tuple[int, int]]:
    """Bounds of pieces of about CHUNK bytes that end with a line."""
    start, size = 0, self.size(number)
    while start < size:
      end = min(start + CHUNK, size)
      if end < size:
        end = self._line_end(number, start, end)
      yield start, end
      start = end

  def _line_end(self, number: int, start: int, end: int) -> int:
    data, offset = self._data(number)
    limit = offset + self.size(number)
    cut = data.rfind(b'\n', offset + start, offset + end)
    if cut < 0:
      cut = data.find(b'\n', offset + end, limit)
    return (cut + 1 if cut >= 0 else limit) - offset

  def digest(self, number: int) -> bytes:
    """sha256 of a file's bytes, unpacked."""
    total, size = hashlib.sha256(), self.size(number)
    for start in range(0, size, CHUNK):
      total.update(self.view(number, start, min(start + CHUNK, size)).data)
    return total.digest()

  def digest_all(self, *words: str) -> str:
    """sha256 (hex) of `words` and of every file's size and bytes, in order."""
    total = hashlib.sha256('\n'.join(words).encode())
    for number in range(len(self)):
      total.update(self.size(number).to_bytes(8, 'little') + self.digest(number))
    return total.hexdigest()

  def _data(self, number: int) -> tuple[mmap.mmap | bytes, int]:
    """The mapped bytes that hold a file, and where in them it begins."""
    if number in self._spans:
      return self._spool, self._spans[number][0]
    data = self._map(number)
    # Reading past the end of a file that was cut meanwhile would kill the process.
    if isinstance(data, mmap.mmap) and data.size() != len(data):
      raise _changed(self.paths[number])
    return data, 0

  def _open(self, number: int) -> mmap.mmap | bytes:
    path, size = self.paths[number], self._sizes[number]
    if not size:
      return b''
    if _size(path) != size:
      raise _changed(path)
    with opened(path) as file:
      return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _reopen(paths: Sequence[str], sizes: Sequence[int]) -> Files:
  files = Files(paths)
  for number, size in enumerate(sizes):
    if files.size(number) != size:
      raise _changed(paths[number])
  return files


def _changed(path: str) -> Mistake:
  return Mistake(f'{path} has changed since it was opened: run again.')


def _size(path: str) -> int:
  try:
    with open(path, 'rb') as file:
      return os.fstat(file.fileno()).st_size
  except OSError as error:
    raise Mistake(f'{path} cannot be read: {error.strerror or error}.') from None


def _unpack(path: str, spool: BinaryIO) -> tuple[int, int]:
  """Appends the file's bytes to `spool`; their bounds there.

  Raises:
    Mistake: the file is cut or damaged.
    Failure: no room for it.
  """
  import lzma

  start = spool.tell()
  try:
    with opened(path) as file:
      shutil.copyfileobj(file, _Room(spool), CHUNK)
  except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
    spool.seek(start)
    spool.truncate()
    raise Mistake(f'{path} is cut or damaged: {error}.') from None
  return start, spool.tell()


class _Room:
  """Writes to the spool; a full disk is told from a damaged file."""

  def __init__(self, spool: BinaryIO):
    self.spool = spool

  def write(self, data: bytes) -> int:
    try:
      return self.spool.write(data)
    except OSError as error:
      where = tempfile.gettempdir()
      raise Failure(f'cannot unpack into {where} (set TMPDIR): {error}.') from None
