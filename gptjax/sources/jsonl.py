"""JSON lines: an object a line; and `.json` files of one array or object of objects."""

import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gptjax.sources import records
from gptjax.sources.files import Files
from gptjax.sources.names import find
from gptjax.sources.records import Records, pass_over
from gptjax.sources.text import BOM, Spans, cut_lines, index_files, place, spot
from gptjax.words import Mistake

_SPACES = re.compile(r'[^ \t\n\r]|\Z')  # Where white space ends.
_SHOWN = 40  # Characters of a bad line in a message.
FLAWS = (ValueError, RecursionError)  # Broken, not UTF-8, too deep, a huge number.


def jsonl(path: str | Sequence[str], on_bad: str = 'error') -> Records:
  """Records of JSON lines, `.gz`, `.xz` and `.bz2` too; blank lines are none.

  path: a file, a folder, a glob, or several separated by commas; see names.find.

  Raises:
    Mistake: no such file, a line that is no JSON object (file and line), a file
      that is empty, cut or not UTF-8.
  """
  records.check_on_bad(on_bad)
  files = Files(find(path), on_bad)
  spans, skipped = index_files(files, _index, on_bad)
  return records.not_empty(
    Records(
      size=len(spans.starts),
      read=functools.partial(_read, files, spans),
      place=functools.partial(place, files, spans, False),
      digest=files.digest_all('jsonl'),
      skipped=files.skipped + skipped,
    ),
    str(path),
  )


def _read(files: Files, spans: Spans, index: int) -> dict[str, Any]:
  return json.loads(files.read(*spot(spans, index)))


def _index(
  files: Files, number: int, on_bad: str
) -> tuple[np.ndarray, np.ndarray, int]:
  """Bounds of one file's records, and how many bad ones were passed over."""
  if _is_one_value(files, number):
    try:
      spans = [span for *span, _ in values(files, number)]
    except Mistake as mistake:
      return (
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
        pass_over(on_bad, Mistake, str(mistake)),
      )
    starts, ends = np.array(spans, np.int64).reshape(-1, 2).T
    return starts, ends, 0
  starts, ends, skipped = [], [], 0
  begin = 3 if files.read(number, 0, 3) == BOM else 0
  for first, last, filled in cut_lines(files, number, begin):
    good = filled.copy()
    for i in np.flatnonzero(filled):
      start = int(first[i])
      flaw = _flaw(files, number, start, int(last[i]))
      if flaw:
        skipped += pass_over(on_bad, _bad_line, files, number, start, flaw)
        good[i] = False
    starts.append(first[good])
    ends.append(last[good])
  empty = [np.zeros(0, np.int64)]
  return np.concatenate(empty + starts), np.concatenate(empty + ends), skipped


def _bad_line(files: Files, number: int, start: int, flaw: str) -> Mistake:
  return Mistake(f'{files.paths[number]}:{files.line(number, start)}: {flaw}.')


def _flaw(files: Files, number: int, start: int, end: int) -> str:
  """What is wrong with a line; nothing if it is a JSON object."""
  if end - start > records.LONGEST:
    return f'one line of over {records.LONGEST:,} bytes'
  data = files.read(number, start, end)
  try:
    value = json.loads(data)
  except UnicodeDecodeError as error:
    return f'not UTF-8 (byte 0x{data[error.start]:02x} at {start + error.start:,})'
  except json.JSONDecodeError as error:
    return f'broken JSON, {error.msg} at column {error.colno}: {_show(data)}'
  except FLAWS as error:
    return f'broken JSON, {error}: {_show(data)}'
  return '' if isinstance(value, dict) else f'no JSON object: {_show(data)}'


def _show(data: bytes) -> str:
  shown = data[: 4 * _SHOWN].decode(errors='replace')
  return repr(shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '...')


def _is_one_value(files: Files, number: int) -> bool:
  """Whether the file is one array or object rather than an object a line.

  Many name their JSON lines `.json`: those begin with a line that is an object by
  itself and is followed by another.
  """
  path = files.paths[number].lower()
  if not files.size(number):
    return False
  end = next(files.chunks(number))[1]
  data = files.read(number, 0, end).removeprefix(BOM).lstrip()
  if data[:1] == b'[':
    return True
  if data[:1] != b'{' or '.json' not in (path[-5:], os.path.splitext(path)[0][-5:]):
    return False
  first, _, rest = data.partition(b'\n')
  if end == files.size(number) and not rest.strip():
    return True
  try:
    json.loads(first)
  except FLAWS:  # The first line of an object laid out over lines, or a broken one.
    return first.rstrip()[-1:] in (b'{', b'[', b',', b':')
  return False


def values(files: Files, number: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
  """Yields (start, end, object), in bytes, of a file that is one JSON value.

  Of an array, its elements; of an object, its values if the first is an object, else
  itself. Only one is decoded at a time.

  Raises:
    Mistake: broken JSON, or an element that is no object, with file and line.
  """
  path, begin = files.paths[number], 3 if files.read(number, 0, 3) == BOM else 0
  try:
    text = files.read(number, begin, files.size(number)).decode()
  except UnicodeDecodeError as error:
    line = files.line(number, begin + error.start)
    raise Mistake(f'{path}:{line}: not UTF-8.') from None
  done, offset, at = 0, begin, 0  # Characters and bytes before the last object.
  try:
    for at, end, value in _scan(text):
      if not isinstance(value, dict):
        raise ValueError(f'no JSON object: {_show(text[at:end].encode())}')
      start = offset + _bytes(text, done, at)
      done, offset = end, start + _bytes(text, at, end)
      yield start, offset, value
  except FLAWS as error:
    at = error.pos if isinstance(error, json.JSONDecodeError) else at
    why = error.msg if isinstance(error, json.JSONDecodeError) else error
    line = 1 + text.count('\n', 0, at)
    raise Mistake(f'{path}:{line}: broken JSON, {why}.') from None


def _bytes(text: str, start: int, end: int) -> int:
  return end - start if text.isascii() else len(text[start:end].encode())


def _scan(text: str) -> Iterator[tuple[int, int, Any]]:
  """Yields (start, end, value), in characters, of the parts of one JSON value."""
  begin = _skip(text, 0)
  parts = _members(text, begin)
  first = next(parts, None)
  if first and text[begin] == '{' and not isinstance(first[2], dict):
    value, end = json.JSONDecoder().raw_decode(text, begin)
    _expect_end(text, end)
    yield begin, end, value
  elif first:
    yield first
    yield from parts


def _members(text: str, begin: int) -> Iterator[tuple[int, int, Any]]:
  """The elements of the array, or the values of the object, that is all of `text`."""
  decode = json.JSONDecoder().raw_decode
  keyed, closing = text[begin] == '{', {'[': ']', '{': '}'}[text[begin]]
  at = _skip(text, begin + 1)
  while text[at : at + 1] != closing:
    if keyed:
      at = _expect(text, decode(text, at)[1], ':')
    value, end = decode(text, at)
    yield at, end, value
    at = _skip(text, end)
    if text[at : at + 1] != closing:
      at = _expect(text, at, ',')
      if text[at : at + 1] == closing:
        raise json.JSONDecodeError('a value expected', text, at)
  _expect_end(text, at + 1)


def _expect_end(text: str, at: int) -> None:
  if _skip(text, at) != len(text):
    raise json.JSONDecodeError('more after the end', text, _skip(text, at))


def _skip(text: str, at: int) -> int:
  found = _SPACES.search(text, at)
  return found.start() if found else len(text)


def _expect(text: str, at: int, mark: str) -> int:
  at = _skip(text, at)
  if text[at : at + 1] != mark:
    raise json.JSONDecodeError(f'{mark!r} expected', text, at)
  return _skip(text, at + 1)
