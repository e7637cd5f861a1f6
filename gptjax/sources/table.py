"""Tables: files of values separated by commas, semicolons or tabs, with a header."""

import csv
import functools
import io
from collections.abc import Iterator, Sequence

import numpy as np

from gptjax.sources import records
from gptjax.sources.files import Files
from gptjax.sources.names import find
from gptjax.sources.records import Records, pass_over
from gptjax.sources.text import BOM, Spans, cut_lines, index_files, place, spot
from gptjax.words import Mistake

_MARKS = ('\t', ';', ',')


def table(path: str | Sequence[str], on_bad: str = 'error') -> Records:
  """Records of rows by the names in the first line, `.gz`, `.xz` and `.bz2` too.

  Values may be quoted as RFC 4180 says, and then run over lines. What separates them is
  the commonest of tab, semicolon and comma in the first line.

  Raises:
    Mistake: no such file, a broken row or one with too few or too many values (file and
      line), a file that is empty, cut or not UTF-8.
  """
  records.check_on_bad(on_bad)
  files = Files(find(path), on_bad)
  heads = [_head(files, number) for number in range(len(files))]
  spans, skipped = index_files(files, functools.partial(_index, heads), on_bad)
  return records.not_empty(
    Records(
      size=len(spans.starts),
      read=functools.partial(_read, files, spans, heads),
      place=functools.partial(place, files, spans, False),
      digest=files.digest_all('table'),
      skipped=files.skipped + skipped,
    ),
    str(path),
  )


def _index(
  heads: list[list[str]], files: Files, number: int, on_bad: str
) -> tuple[np.ndarray, np.ndarray, int]:
  """Bounds of one file's rows, and how many bad ones were passed over."""
  csv.field_size_limit(records.LONGEST)
  starts, ends, skipped = [], [], 0
  names = heads[number][1:]
  for n, (start, end, row, why) in enumerate(_rows(files, number, heads[number][0])):
    if n == 0 and not why:
      continue  # The header.
    if not why and len(row) != len(names):
      why = f'a row of {len(row)} values, where the header has {len(names)}'
    if why:
      skipped += pass_over(on_bad, _bad, files, number, start, why)
    else:
      starts.append(start)
      ends.append(end)
  return np.array(starts, np.int64), np.array(ends, np.int64), skipped


def _bad(files: Files, number: int, start: int, why: str) -> Mistake:
  return Mistake(f'{files.paths[number]}:{files.line(number, start)}: {why}.')


def _head(files: Files, number: int) -> list[str]:
  """What separates the values, then the names of the first line."""
  begin = 3 if files.read(number, 0, 3) == BOM else 0
  for first, last, filled in cut_lines(files, number, begin):
    for at in np.flatnonzero(filled):
      line = files.read(number, int(first[at]), int(last[at])).decode(errors='replace')
      mark = max(_MARKS, key=line.count)
      start, _, names, why = next(_rows(files, number, mark))
      if why:
        raise _bad(files, number, start, f'no header, {why}')
      return [mark, *names]
  return [',']


def _read(
  files: Files, spans: Spans, heads: list[list[str]], index: int
) -> dict[str, str]:
  number, start, end = spot(spans, index)
  mark, *names = heads[number]
  text = io.StringIO(files.read(number, start, end).decode(), newline='')
  (row,) = csv.reader(text, delimiter=mark, strict=True)
  return dict(zip(names, row, strict=True))


class _Lines:
  """The lines of a file as csv.reader takes them; it tells which ones a row took."""

  def __init__(self, files: Files, number: int):
    self.start, self.end = -1, 0
    self._files, self._number = files, number
    begin = 3 if files.read(number, 0, 3) == BOM else 0
    chunks = cut_lines(files, number, begin)
    self._lines = (
      line for a, b, _ in chunks for line in zip(a.tolist(), b.tolist(), strict=True)
    )

  def __iter__(self) -> '_Lines':
    return self

  def __next__(self) -> str:
    start, self.end = next(self._lines)
    self.start = start if self.start < 0 else self.start
    return self._files.read(self._number, start, self.end).decode() + '\n'


def _rows(
  files: Files, number: int, mark: str
) -> Iterator[tuple[int, int, list[str], str]]:
  """Yields (start, end, values, what is wrong) of rows, blank lines passed over."""
  lines = _Lines(files, number)
  reader = csv.reader(lines, delimiter=mark, strict=True)
  while True:
    lines.start, row, why = -1, [], ''
    try:
      row = next(reader)
    except StopIteration:
      return
    except UnicodeDecodeError as error:
      why = f'not UTF-8 (byte 0x{error.object[error.start]:02x})'
    except csv.Error as error:
      why = f'broken row, {error}'
    if why:  # What it has read of the row is lost with it.
      reader = csv.reader(lines, delimiter=mark, strict=True)
    if row or why:
      yield lines.start, lines.end, row, why
