"""Text files: a file, a paragraph or a line is a document.

Paragraphs are separated by blank lines and keep their inner line ends; lines lose
theirs, blank ones are no documents. A byte order mark is no text. Files keep every
other byte.
"""

import bisect
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gptjax.lookup import nearest
from gptjax.sources import records
from gptjax.sources.files import Files
from gptjax.sources.names import find
from gptjax.sources.records import Records, pass_over
from gptjax.words import Mistake

DOCUMENTS = ('file', 'paragraph', 'line')
BOM = b'\xef\xbb\xbf'
_SPACE = np.zeros(256, bool)
_SPACE[list(b' \t\n\v\f\r')] = True


class Spans(NamedTuple):
  """Where the documents of one or more files lie."""

  starts: np.ndarray  # [N] int64, bytes from the file's start.
  ends: np.ndarray  # [N] int64
  firsts: list[int]  # Number of each file's first document.


def text(
  path: str | Sequence[str], document: str = 'file', on_bad: str = 'error'
) -> Records:
  """Records {'text': str} of UTF-8 text files, `.gz`, `.xz` and `.bz2` too.

  path: a file, a folder, a glob, or several separated by commas; see names.find.
  document: file, paragraph or line.

  Raises:
    Mistake: no such file, not UTF-8 (file and line), empty, cut, or too long.
  """
  records.check_on_bad(on_bad)
  if document not in DOCUMENTS:
    raise Mistake(f'document={document!r}: {nearest(str(document), DOCUMENTS)}')
  files = Files(find(path), on_bad)
  spans, skipped = index_files(files, functools.partial(_index, document), on_bad)
  return records.not_empty(
    Records(
      size=len(spans.starts),
      read=functools.partial(_read, files, spans),
      place=functools.partial(place, files, spans, document == 'file'),
      digest=files.digest_all('text', document),
      skipped=files.skipped + skipped,
    ),
    str(path),
  )


def index_files(files: Files, index, on_bad: str) -> tuple[Spans, int]:
  """Runs `index(files, number, on_bad) -> (starts, ends, skipped)` over all files."""
  starts, ends, firsts, skipped = (
    [np.zeros(0, np.int64)],
    [np.zeros(0, np.int64)],
    [],
    0,
  )
  count = 0
  for number, path in enumerate(files.paths):
    firsts.append(count)
    first, last, bad = index(files, number, on_bad)
    if not len(first) and not bad:
      bad = pass_over(on_bad, Mistake, f'{path} is empty.')
    starts.append(first)
    ends.append(last)
    count += len(first)
    skipped += bad
  return Spans(np.concatenate(starts), np.concatenate(ends), firsts), skipped


def spot(spans: Spans, index: int) -> tuple[int, int, int]:
  """The file number, the first byte and the end of document `index`."""
  number = bisect.bisect_right(spans.firsts, index) - 1
  return number, int(spans.starts[index]), int(spans.ends[index])


def place(files: Files, spans: Spans, whole: bool, index: int) -> str:
  """'file:line' of a document; 'file' if it is the whole."""
  number, start, _ = spot(spans, index)
  path = files.paths[number]
  return path if whole else f'{path}:{files.line(number, start)}'


def _read(files: Files, spans: Spans, index: int) -> dict[str, str]:
  return {'text': files.read(*spot(spans, index)).decode()}


def _index(
  document: str, files: Files, number: int, on_bad: str
) -> tuple[np.ndarray, np.ndarray, int]:
  """Bounds of one file's documents, and how many bad ones were passed over."""
  skip_mark = 3 if files.read(number, 0, 3) == BOM else 0
  cut = {'file': _whole, 'paragraph': _paragraphs, 'line': _lines}[document]
  starts, ends = cut(files, number, skip_mark)
  good = np.ones(len(starts), bool)
  for i in np.flatnonzero(ends - starts > records.LONGEST):
    good[i] = not pass_over(on_bad, _too_long, files, number, starts[i], document)
  bad_bytes = _first_bad_byte(files, number)
  if bad_bytes is not None:
    pass_over(on_bad, _not_utf8, files, number, bad_bytes)
    pairs = zip(starts, ends, good, strict=True)
    good = np.array(
      [g and _decodes(files.read(number, a, b)) for a, b, g in pairs], bool
    )
  return starts[good], ends[good], int(len(good) - good.sum())


def _too_long(files: Files, number: int, start: int, document: str) -> Mistake:
  where = f'{files.paths[number]}:{files.line(number, int(start))}'
  finer = {'file': 'paragraph', 'paragraph': 'line'}.get(document)
  cure = f": document='{finer}' cuts it smaller" if finer else ''
  return Mistake(f'{where}: one {document} of over {records.LONGEST:,} bytes{cure}.')


def _not_utf8(files: Files, number: int, offset: int) -> Mistake:
  path = files.paths[number]
  if files.read(number, 0, 2) in (b'\xff\xfe', b'\xfe\xff'):
    return Mistake(f'{path}:1: UTF-16, and only UTF-8 is read: convert it with iconv.')
  byte = files.read(number, offset, offset + 1)[0]
  line = files.line(number, offset)
  return Mistake(f'{path}:{line}: not UTF-8 (byte 0x{byte:02x} at {offset:,}).')


def _first_bad_byte(files: Files, number: int) -> int | None:
  for start, end in files.chunks(number):
    try:
      files.read(number, start, end).decode()
    except UnicodeDecodeError as error:
      return start + error.start
  return None


def _decodes(data: bytes) -> bool:
  try:
    data.decode()
  except UnicodeDecodeError:
    return False
  return True


def _whole(files: Files, number: int, begin: int) -> tuple[np.ndarray, np.ndarray]:
  size = files.size(number)
  for start, end in files.chunks(number):
    if not _SPACE[files.view(number, max(start, begin), end)].all():
      return np.array([begin], np.int64), np.array([size], np.int64)
  return np.zeros(0, np.int64), np.zeros(0, np.int64)


def cut_lines(files: Files, number: int, begin: int):
  """Yields (starts, ends, filled) of the lines of one chunk after another.

  An end stands before the line's '\\n' or '\\r\\n'; filled: not blank.
  """
  for start, end in files.chunks(number):
    start = max(start, begin)
    data = files.view(number, start, end)
    if not len(data):
      continue
    stops = np.flatnonzero(data == 10)
    if not len(stops) or stops[-1] != len(data) - 1:  # The last line has no '\n'.
      stops = np.append(stops, len(data))
    starts = np.concatenate([[0], stops[:-1] + 1])
    filled = np.logical_or.reduceat(~_SPACE[data], starts)
    returned = (stops > starts) & (data[np.maximum(stops - 1, 0)] == 13)
    yield starts + start, stops - returned + start, filled


def _lines(files: Files, number: int, begin: int) -> tuple[np.ndarray, np.ndarray]:
  starts, ends = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
  for first, last, filled in cut_lines(files, number, begin):
    starts.append(first[filled])
    ends.append(last[filled])
  return np.concatenate(starts), np.concatenate(ends)


def _paragraphs(files: Files, number: int, begin: int) -> tuple[np.ndarray, np.ndarray]:
  starts, ends = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
  inside, last_end = False, 0  # Of the chunk before.
  for first, last, filled in cut_lines(files, number, begin):
    before = np.concatenate([[inside], filled[:-1]])
    ends_before = np.concatenate([[last_end], last[:-1]])
    starts.append(first[filled & ~before])
    ends.append(ends_before[~filled & before])
    inside, last_end = bool(filled[-1]), int(last[-1])
  if inside:
    ends.append(np.array([last_end], np.int64))
  return np.concatenate(starts), np.concatenate(ends)
