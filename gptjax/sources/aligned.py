"""Parallel text: line n of one file says what line n of the other says."""

import functools
from collections.abc import Sequence

import numpy as np

from gptjax.sources import records
from gptjax.sources.files import Files
from gptjax.sources.records import Records
from gptjax.sources.text import BOM, cut_lines
from gptjax.words import Mistake


def aligned(
  source: Sequence[str], target: Sequence[str], on_bad: str = 'error'
) -> Records:
  """Records {'source', 'target'} of lines, blank ones too; also `.gz`, `.xz`, `.bz2`.

  source, target: names of as many files, one by one of as many lines.

  Raises:
    Mistake: no such file, one that is cut, or files that do not pair up.
  """
  records.check_on_bad(on_bad)
  if len(source) != len(target):
    raise Mistake(
      f'{len(source)} source files and {len(target)} target files: they go in pairs.'
    )
  files = Files([*source, *target])
  starts, ends, sizes = [], [], []
  for number in range(len(files)):
    first, last = _lines(files, number)
    starts.append(first)
    ends.append(last)
    sizes.append(len(first))
  half = len(source)
  for a, b in zip(range(half), range(half, 2 * half), strict=True):
    if sizes[a] != sizes[b]:
      raise Mistake(
        f'{files.paths[a]} has {sizes[a]:,} lines and {files.paths[b]} {sizes[b]:,}: '
        'line n of one must say what line n of the other says.'
      )
  spans = list(zip(starts, ends, strict=True))
  firsts = np.cumsum([0, *sizes[:half]])
  return records.not_empty(
    Records(
      size=int(firsts[-1]),
      read=functools.partial(_read, files, spans, firsts),
      place=functools.partial(_place, files, firsts),
      digest=files.digest_all('aligned'),
    ),
    ', '.join(files.paths),
  )


def _lines(files: Files, number: int) -> tuple[np.ndarray, np.ndarray]:
  """First byte and end of every line."""
  begin = 3 if files.read(number, 0, 3) == BOM else 0
  starts, ends = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
  for first, last, _ in cut_lines(files, number, begin):
    starts.append(first)
    ends.append(last)
  return np.concatenate(starts), np.concatenate(ends)


def _spot(firsts: np.ndarray, index: int) -> tuple[int, int]:
  """The number of a record's pair of files, and of its line from 0."""
  number = int(np.searchsorted(firsts, index, side='right')) - 1
  return number, index - int(firsts[number])


def _read(
  files: Files,
  spans: Sequence[tuple[np.ndarray, np.ndarray]],
  firsts: np.ndarray,
  index: int,
) -> dict[str, str]:
  number, line = _spot(firsts, index)
  found = {}
  for name, n in (('source', number), ('target', number + len(firsts) - 1)):
    starts, ends = spans[n]
    found[name] = files.read(n, int(starts[line]), int(ends[line])).decode()
  return found


def _place(files: Files, firsts: np.ndarray, index: int) -> str:
  number, line = _spot(firsts, index)
  return f'{files.paths[number]}:{line + 1}'
