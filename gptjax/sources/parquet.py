"""Parquet files, read row group by row group.

Row groups decode as a whole, so random access in them is slow: once, when opened, the
columns wanted go into a nameless temporary Arrow file (in TMPDIR), which is mapped.
Source: https://arrow.apache.org/docs/python/ipc.html
"""

import bisect
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from gptjax.lookup import nearest
from gptjax.sources import records
from gptjax.sources.files import Files
from gptjax.sources.names import find
from gptjax.sources.records import Records, pass_over
from gptjax.words import Mistake


def parquet(
  path: str | Sequence[str],
  on_bad: str = 'error',
  columns: Sequence[str] | None = None,
) -> Records:
  """Records of Parquet files, a row each; needs the extra gptjax[parquet].

  path: a file, a folder, a glob, or several separated by commas; see names.find.
  columns: those to read; None for all that the first file has.

  Raises:
    Mistake: no such file or column, no pyarrow, a file that is damaged or empty.
  """
  records.check_on_bad(on_bad)
  rows = _Rows(find(path), columns, on_bad)
  return records.not_empty(
    Records(
      size=rows.firsts[-1],
      read=rows.read,
      place=rows.place,
      digest=rows.files.digest_all('parquet'),
      skipped=rows.skipped,
    ),
    str(path),
  )


def _pyarrow() -> Any:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError:
    raise Mistake('Parquet needs pyarrow: pip install "gptjax[parquet]".') from None
  return pyarrow


class _Rows:
  """Rows of Parquet files in one mapped Arrow file. Pickles as the files' names."""

  def __init__(
    self, paths: Sequence[str], columns: Sequence[str] | None, on_bad: str = 'error'
  ):
    self.arrow = _pyarrow()
    self.columns = columns
    self.on_bad = on_bad
    self.files = Files(paths, on_bad)
    self.skipped = self.files.skipped
    self.firsts = [0]  # First row of each batch, then the number of rows.
    self.starts: list[int] = []  # First row of each file.
    self.batches: list[Any] = []
    self.schema: Any = None
    handle, name = tempfile.mkstemp(suffix='.arrow')
    os.close(handle)
    try:
      self._copy(name)
    finally:
      os.unlink(name)  # The map keeps the bytes until it is let go.

  def __reduce__(self):
    return _Rows, (self.files.paths, self.columns, self.on_bad)

  def read(self, index: int) -> dict[str, Any]:
    number = bisect.bisect_right(self.firsts, index) - 1
    batch, row = self.batches[number], index - self.firsts[number]
    names = batch.schema.names
    return {n: c[row].as_py() for n, c in zip(names, batch.columns, strict=True)}

  def place(self, index: int) -> str:
    number = bisect.bisect_right(self.starts, index) - 1
    return f'{self.files.paths[number]}:{index - self.starts[number] + 1}'

  def _copy(self, name: str) -> None:
    """Row group after row group into the Arrow file, which is then mapped."""
    writer = None
    for number in range(len(self.files)):
      self.starts.append(self.firsts[-1])
      try:
        for batch in self._decode(number):
          writer = writer or self.arrow.ipc.new_file(name, batch.schema)
          writer.write_batch(batch)
          self.firsts.append(self.firsts[-1] + batch.num_rows)
      except Mistake as mistake:
        self.skipped += pass_over(self.on_bad, Mistake, str(mistake))
    if writer is not None:
      writer.close()
      reader = self.arrow.ipc.open_file(self.arrow.memory_map(name))
      self.batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]

  def _decode(self, number: int) -> Iterator[Any]:
    """Batches of the wanted columns, one row group in memory at a time."""
    arrow, path = self.arrow, self.files.paths[number]
    size, rows = self.files.size(number), 0
    try:
      data = arrow.py_buffer(self.files.view(number, 0, size)) if size else b''
      file = arrow.parquet.ParquetFile(arrow.BufferReader(data))
      self.columns = list(self.columns or file.schema_arrow.names)
      for column in self.columns:
        if column not in file.schema_arrow.names:
          near = nearest(column, file.schema_arrow.names)
          raise Mistake(f'{path} has no column {column!r}: {near}')
      for group in range(file.num_row_groups):
        table = file.read_row_group(group, self.columns).combine_chunks()
        self.schema = self.schema or table.schema
        for batch in table.cast(self.schema).to_batches():
          rows += batch.num_rows
          yield batch
    except (arrow.ArrowException, OSError) as error:
      why = ' '.join(str(error).split())
      raise Mistake(f'{path} is no sound Parquet file: {why}') from None
    if not rows:
      raise Mistake(f'{path} is empty.')
