"""Parquet by row, without holding the file, and bad input."""

import pickle
import sys

import pytest

from gptjax.sources.parquet import parquet
from gptjax.words import Mistake

pa = pytest.importorskip('pyarrow', reason='needs gptjax[parquet]')
pq = pytest.importorskip('pyarrow.parquet', reason='needs gptjax[parquet]')

ROWS = [{'text': f'row {i} é', 'n': i} for i in range(100)]


def write(path, rows, group=7):
  pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)


def test_rows_by_index(tmp_path):
  write(tmp_path / 'a.parquet', ROWS[:60])
  write(tmp_path / 'b.parquet', ROWS[60:], group=1000)
  source = parquet(f'{tmp_path}/*.parquet')
  assert [source[i] for i in range(100)] == ROWS
  assert [source[i] for i in (99, 0, 60, 59)] == [ROWS[i] for i in (99, 0, 60, 59)]
  assert source.where(0).endswith('a.parquet:1')
  assert source.where(63).endswith('b.parquet:4')
  with pytest.raises(IndexError):
    source[100]
  narrow = parquet(f'{tmp_path}/*.parquet', columns=['text'])
  assert narrow[70] == {'text': ROWS[70]['text']}
  again = pickle.loads(pickle.dumps(narrow))
  assert [again[i] for i in range(100)] == [narrow[i] for i in range(100)]
  assert again.where(63) == source.where(63)


def test_the_digest_follows_the_bytes(tmp_path):
  write(tmp_path / 'a.parquet', ROWS)
  digest = parquet(f'{tmp_path}/a.parquet').digest
  (tmp_path / 'a.parquet').rename(tmp_path / 'b.parquet')
  assert parquet(f'{tmp_path}/b.parquet').digest == digest
  write(tmp_path / 'b.parquet', ROWS[:-1])
  assert parquet(f'{tmp_path}/b.parquet').digest != digest


def test_bad_input(tmp_path):
  write(tmp_path / 'b.parquet', ROWS[:3])
  sound = (tmp_path / 'b.parquet').read_bytes()
  cases = {
    sound[:-30]: 'is no sound Parquet file',
    b'': 'is no sound Parquet file',
    b'plain': 'is no sound Parquet file',
    'empty': 'is empty',
    'other': "has no column 'text': .*Allowed: words",
  }
  for case, message in cases.items():
    if case == 'empty':
      table = pa.table({'text': pa.array([], pa.string())})
      pq.write_table(table, tmp_path / 'a.parquet')
    elif case == 'other':
      write(tmp_path / 'a.parquet', [{'words': 'x'}])
    else:
      (tmp_path / 'a.parquet').write_bytes(case)
    with pytest.raises(Mistake, match=rf"a\.parquet {message}.*on_bad='skip'") as error:
      parquet(str(tmp_path), columns=['text'])
    assert '\n' not in str(error.value)
    source = parquet(str(tmp_path), on_bad='skip', columns=['text'])
    assert [source[i]['text'] for i in range(len(source))] == [
      r['text'] for r in ROWS[:3]
    ]
    assert source.skipped == 1


def test_without_pyarrow_one_line_names_the_extra(tmp_path, monkeypatch):
  write(tmp_path / 'a.parquet', ROWS)
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(Mistake, match=r'pip install "gptjax\[parquet\]"'):
    parquet(str(tmp_path))


def test_no_temporary_file_is_left(tmp_path, monkeypatch):
  import tempfile

  write(tmp_path / 'a.parquet', ROWS)
  spool = tmp_path / 'spool'
  spool.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(spool))
  assert parquet(f'{tmp_path}/a.parquet')[3] == ROWS[3]
  assert not list(spool.iterdir())
