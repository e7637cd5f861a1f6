"""JSON lines and JSON files against the json module, and every kind of bad input."""

import gzip
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.sources import files, records
from gptjax.sources.jsonl import jsonl
from gptjax.words import Mistake

values = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=3), inner, max_size=3)
  ),
  max_leaves=6,
)
objects = st.dictionaries(st.text(max_size=4), values, max_size=4)
layouts = st.sampled_from([None, 0, 2])


def all_of(source):
  return [source[i] for i in range(len(source))]


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(objects, min_size=1, max_size=8), chunk=st.integers(1, 60))
def test_lines(tmp_path_factory, rows, chunk):
  folder = tmp_path_factory.mktemp('jsonl')
  lines = [json.dumps(r, ensure_ascii=i % 2 == 0) for i, r in enumerate(rows)]
  (folder / 'a.jsonl').write_text('\ufeff' + '\n\n'.join(lines), encoding='utf-8')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(files, 'CHUNK', chunk)
    source = jsonl(str(folder / 'a.jsonl'))
    assert all_of(source) == rows
    assert source.where(len(rows) - 1).endswith(f'a.jsonl:{2 * len(rows) - 1}')


@settings(deadline=None, max_examples=60)
@given(
  rows=st.lists(objects, min_size=1, max_size=6), indent=layouts, raw=st.booleans()
)
def test_one_array_or_one_object_of_objects(tmp_path_factory, rows, indent, raw):
  folder = tmp_path_factory.mktemp('json')
  content = json.dumps(rows, indent=indent, ensure_ascii=not raw)
  (folder / 'a.json').write_text(content, encoding='utf-8')
  assert all_of(jsonl(str(folder / 'a.json'))) == rows
  keyed = {f'é{i}': row for i, row in enumerate(rows)}
  content = json.dumps(keyed, indent=indent, ensure_ascii=not raw) + '\n'
  (folder / 'b.json').write_text(content, encoding='utf-8')
  assert all_of(jsonl(str(folder / 'b.json'))) == rows


def test_where_in_an_array_laid_out_over_lines(tmp_path):
  rows = [{'text': 'ü'}, {'text': 'b'}, {'text': 'c'}]
  (tmp_path / 'a.json').write_text(json.dumps(rows, indent=1))
  assert jsonl(str(tmp_path / 'a.json')).where(2).endswith('a.json:8')


def test_json_lines_that_are_named_json(tmp_path):
  (tmp_path / 'a.json').write_text('{"text": "a"}\n{"text": "b"}\n')
  assert len(jsonl(str(tmp_path / 'a.json'))) == 2
  (tmp_path / 'b.json').write_text('{"text": "a", "n": 1}')
  assert all_of(jsonl(str(tmp_path / 'b.json'))) == [{'text': 'a', 'n': 1}]
  (tmp_path / 'c.json').write_text('{"text": broken}\n{"text": "b"}\n')
  with pytest.raises(Mistake, match=r'c\.json:1: broken JSON'):
    jsonl(str(tmp_path / 'c.json'))
  assert len(jsonl(str(tmp_path / 'c.json'), on_bad='skip')) == 1


def test_gz_and_pickle(tmp_path):
  rows = [{'text': f'{i} é'} for i in range(50)]
  content = ''.join(json.dumps(r) + '\n' for r in rows)
  (tmp_path / 'a.jsonl').write_text(content)
  (tmp_path / 'b.jsonl.gz').write_bytes(gzip.compress(content.encode()))
  plain, packed = jsonl(f'{tmp_path}/a.jsonl'), jsonl(f'{tmp_path}/b.jsonl.gz')
  assert all_of(plain) == all_of(packed) == rows
  assert plain.digest == packed.digest
  assert packed.where(9) == f'{tmp_path}/b.jsonl.gz:10'
  assert all_of(pickle.loads(pickle.dumps(packed))) == rows


BAD = {
  '{"text": "cut': 'broken JSON, Unterminated string starting at at column 10',
  '["a", "list"]': 'no JSON object: ',
  '"text"': 'no JSON object',
  'plain words': 'broken JSON, Expecting value at column 1',
  '{"text": "a"} {"text": "b"}': 'broken JSON, Extra data at column 15',
  '{"n": ' + '1' * 5000 + '}': 'broken JSON, Exceeds the limit',
  '{"n": ' + '[' * 100_000 + '}': 'broken JSON, maximum recursion depth',
  b'{"text": "\xff"}': r'not UTF-8 \(byte 0xff at 24\)',
}


@pytest.mark.parametrize('bad', BAD, ids=lambda b: str(b)[:12])
def test_bad_lines(tmp_path, bad):
  data = bad if isinstance(bad, bytes) else bad.encode()
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"text": "a"}\n' + data + b'\n\n{"text": "b"}\n')
  with pytest.raises(Mistake, match=rf"a\.jsonl:2: {BAD[bad]}.*on_bad='skip'") as error:
    jsonl(str(path))
  assert '\n' not in str(error.value)
  assert len(str(error.value)) < 400
  source = jsonl(str(path), on_bad='skip')
  assert [r['text'] for r in all_of(source)] == ['a', 'b']
  assert source.skipped == 1
  assert source.where(1).endswith(':4')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('[{"a": 1},\n {"a": }]', ':2: broken JSON, Expecting value'),
    ('[{"a": 1},\n 5]', ':2: broken JSON, no JSON object'),
    ('[{"a": 1}\n {"a": 2}]', ":2: broken JSON, ',' expected"),
    ('[{"a": 1}] more', ':1: broken JSON, more after the end'),
    ('[{"a": 1}, ', ':1: broken JSON, '),
    ('{\n "x": {"a": 1},\n "y": 5}', ':3: broken JSON, no JSON object'),
    ('[]', ' is empty'),
    ('', ' is empty'),
  ],
)
def test_bad_files(tmp_path, content, message):
  (tmp_path / 'a.json').write_text(content)
  (tmp_path / 'b.json').write_text('{"text": "good"}')
  with pytest.raises(Mistake, match=rf'a\.json{message}'):
    jsonl(str(tmp_path))
  source = jsonl(str(tmp_path), on_bad='skip')
  assert (all_of(source), source.skipped) == ([{'text': 'good'}], 1)


def test_a_huge_line(tmp_path, monkeypatch):
  monkeypatch.setattr(records, 'LONGEST', 1000)
  path = tmp_path / 'a.jsonl'
  path.write_text('{"text": "a"}\n' + json.dumps({'text': 'x' * 1000}) + '\n')
  with pytest.raises(Mistake, match=r'a\.jsonl:2: one line of over 1,000 bytes'):
    jsonl(str(path))
  assert jsonl(str(path), on_bad='skip').skipped == 1


def test_nothing_left(tmp_path):
  (tmp_path / 'a.jsonl').write_text('broken\nbroken\n')
  with pytest.raises(Mistake, match=r'holds no document \(2 bad ones skipped\)'):
    jsonl(str(tmp_path / 'a.jsonl'), on_bad='skip')


def test_many_bad_lines_are_counted_in_linear_time(tmp_path, monkeypatch):
  (tmp_path / 'a.jsonl').write_text('broken\n' * 200 + '{"text": "a"}\n')

  def line(*_):
    raise AssertionError('counting lines for each bad one is quadratic')

  monkeypatch.setattr(files.Files, 'line', line)
  assert jsonl(str(tmp_path / 'a.jsonl'), on_bad='skip').skipped == 200


def test_real_sets(shared):
  with open(shared / 'gsm8k' / 'test.jsonl', encoding='utf-8') as file:
    expected = [json.loads(line) for line in file]
  assert all_of(jsonl(str(shared / 'gsm8k' / 'test.jsonl'))) == expected
  assert len(jsonl(str(shared / 'hh_rlhf' / '*.jsonl.gz'))) == 2312
  path = shared / 'alpaca_small' / 'instructions.json'
  assert all_of(jsonl(str(path))) == json.loads(path.read_text(encoding='utf-8'))
