"""Tables: quoted values over lines, broken rows with file and line."""

import csv
import gzip
import io
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.sources.table import table
from gptjax.words import Mistake


def write(tmp_path, data, name='a.csv'):
  path = tmp_path / name
  path.write_bytes(data if isinstance(data, bytes) else data.encode())
  return str(path)


def rows(path, **settings):
  found = table(path, **settings)
  return [found[i] for i in range(len(found))]


def test_rows_by_the_names_of_the_header(tmp_path):
  path = write(tmp_path, ',text,label\r\n0,"a, ""b""\n\nc",x\r\n\r\n1,5" wide,y')
  assert rows(path) == [
    {'': '0', 'text': 'a, "b"\n\nc', 'label': 'x'},
    {'': '1', 'text': '5" wide', 'label': 'y'},
  ]
  found = table(path)
  assert [found.where(i) for i in range(2)] == [f'{path}:2', f'{path}:6']
  assert pickle.loads(pickle.dumps(found))[1] == found[1]


@pytest.mark.parametrize('mark', [',', ';', '\t'])
def test_what_separates_is_told_from_the_header(tmp_path, mark):
  path = write(tmp_path, f'a{mark}b\n1{mark}2\n'.encode('utf-8-sig'))
  assert rows(path) == [{'a': '1', 'b': '2'}]
  packed = write(tmp_path, gzip.compress(f'a{mark}b\n3{mark}4\n'.encode()), 'b.csv.gz')
  assert rows(packed) == [{'a': '3', 'b': '4'}]
  assert rows(f'{path},{packed}') == [{'a': '1', 'b': '2'}, {'a': '3', 'b': '4'}]


VALUE = st.text('ab",;\n é', max_size=8)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(VALUE, VALUE, VALUE), min_size=1, max_size=6))
def test_it_reads_what_csv_writes(tmp_path_factory, values):
  out = io.StringIO()
  csv.writer(out, lineterminator='\n').writerows([('a', 'b', 'c'), *values])
  path = write(tmp_path_factory.mktemp('csv'), out.getvalue())
  assert [tuple(row.values()) for row in rows(path)] == values


@pytest.mark.parametrize(
  ('data', 'line', 'why', 'rest'),
  [
    ('a,b\n1,2\n3\n5,6\n', 3, 'a row of 1 values, where the header has 2', 2),
    ('a,b\n1,2\n3,4,5\n5,6\n', 3, 'a row of 3 values', 2),
    ('a,b\n1,"2" x\n5,6\n', 2, 'broken row', 1),
    ('a,b\n5,6\n1,"2\n7,8\n', 3, 'broken row, unexpected end of data', 1),
    (b'a,b\n5,6\n1,\xff\n7,8\n', 3, 'not UTF-8', 2),
  ],
)
def test_broken_rows(tmp_path, data, line, why, rest):
  path = write(tmp_path, data)
  with pytest.raises(Mistake) as error:
    table(path)
  assert f'{path}:{line}: {why}' in str(error.value)
  assert '\n' not in str(error.value)
  found = table(path, on_bad='skip')
  assert (len(found), found.skipped) == (rest, 1)
  assert all(len(found[i]) == 2 for i in range(rest))


@pytest.mark.parametrize('data', ['', '\n\n', 'a,b\n'])
def test_nothing_in_it(tmp_path, data):
  with pytest.raises(Mistake, match='is empty'):
    table(write(tmp_path, data))
