"""The text task: formats, fields, splits and what goes wrong."""

import gzip
import itertools
import json
import pathlib
import pickle

import pytest

from gptjax import lookup
from gptjax.tasks.text import text
from gptjax.words import Mistake, Text


def all_of(task):
  return [task.example(i).text for i in range(len(task))]


@pytest.fixture
def lines(tmp_path, monkeypatch):
  """notes.txt with 400 lines, in the working folder."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv('GPTJAX_DATA', raising=False)
  documents = [f'line {i} 一' for i in range(400)]
  pathlib.Path('notes.txt').write_text('\n'.join(documents), encoding='utf-8')
  return documents


def test_splits_share_the_documents(lines):
  parts = {s: text('notes.txt', s, document='line') for s in ('train', 'val', 'test')}
  assert sorted(itertools.chain(*map(all_of, parts.values()))) == sorted(lines)
  assert all(len(p) >= 10 for p in parts.values())
  assert all_of(text('notes.txt', 'all', document='line')) == lines
  val = parts['val']
  assert (val.kind, val.name, val.skipped) == ('text', 'notes.txt', 0)
  assert isinstance(val.example(0), Text)
  assert val.where(3) == f'notes.txt:{lines.index(val.example(3).text) + 1}'
  assert len({p.digest for p in parts.values()}) == 3
  with pytest.raises(IndexError):
    val.example(len(val))
  again = pickle.loads(pickle.dumps(val))
  assert all_of(again) == all_of(val)
  assert again.where(3) == val.where(3)


def test_the_format_does_not_change_splits_or_digests(lines):
  rows = [json.dumps({'body': line, 'id': i}) for i, line in enumerate(lines)]
  pathlib.Path('a.jsonl').write_text('\n'.join(rows))
  pathlib.Path('b.jsonl.gz').write_bytes(gzip.compress('\n'.join(rows).encode()))
  pq = pytest.importorskip('pyarrow.parquet')
  import pyarrow

  pq.write_table(pyarrow.table({'body': lines, 'id': range(400)}), 'c.parquet')
  reference = text('notes.txt', 'val', document='line')
  for path in ('a.jsonl', 'b.jsonl.gz', 'c.parquet'):
    task = text(path, 'val', field='body')
    assert all_of(task) == all_of(reference)
    assert task.digest == reference.digest
    assert task.where(0).startswith(path)


def test_one_long_file_by_position(shared):
  path = shared / 'tinyshakespeare' / 'input.txt'
  whole = path.read_text()
  cut = int(len(whole) * 0.9)
  parts = {'val': 0.1, 'test': 0.0}
  train = text('tinyshakespeare', by='position', splits=parts, data=str(shared))
  val = text('tinyshakespeare', 'val', by='position', splits=parts, data=str(shared))
  assert (len(train), len(val)) == (1, 1)
  assert train.example(0).text == whole[:cut]
  assert val.example(0).text == whole[cut:]
  assert len(val.example(0).text) == 111_540
  assert train.digest != val.digest
  assert text(str(path), by='position', splits=parts).digest == train.digest
  with pytest.raises(Mistake, match="split 'test' is off"):
    text('tinyshakespeare', 'test', by='position', splits=parts, data=str(shared))


def test_one_chinese_file_by_position(lines):
  content = '天地玄黄宇宙洪荒' * 100
  pathlib.Path('one.txt').write_text(content, encoding='utf-8')
  parts = [all_of(text('one.txt', s, by='position')) for s in ('train', 'val', 'test')]
  assert ''.join(p for (p,) in parts) == content
  assert abs(len(parts[1][0]) - 40) <= 1


def test_small_splits_name_the_cure(lines):
  with pytest.raises(Mistake) as error:
    text('notes.txt', 'val')
  for cure in ('document=paragraph', 'by=position', 'val_path='):
    assert cure in str(error.value)
  assert "'val' would hold" in str(error.value)
  assert '\n' not in str(error.value)
  pathlib.Path('few.txt').write_text('a\n\nb\n\nc')
  with pytest.raises(Mistake, match='document=line'):
    text('few.txt', 'test', document='paragraph')
  pathlib.Path('few.jsonl').write_text('{"text": "a"}')
  with pytest.raises(Mistake) as error:
    text('few.jsonl', 'val', document='file')
  assert 'document=' not in str(error.value)
  pathlib.Path('two.jsonl').write_text('{"text": "a"}\n{"text": "bbbb"}')
  with pytest.raises(Mistake, match=r"'val' would hold 0 of 2 .*val_path="):
    text('two.jsonl', 'val', by='position')


def test_a_train_split_that_would_be_empty(lines):
  # Of one document, the hash decides: this one belongs to validation.
  number = next(i for i in range(999) if sha(f'{i}') < 0.05)
  pathlib.Path('one.txt').write_text(f'{number}')
  with pytest.raises(Mistake, match="'train' would hold 0 of 1"):
    text('one.txt')
  off = text('one.txt', splits={'val': 0.0, 'test': 0.0})
  assert all_of(off) == [f'{number}']


def sha(content):
  import hashlib

  return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], 'big') / 2**64


def test_splitting_off(lines):
  off = {'val': 0.0, 'test': 0.0}
  assert all_of(text('notes.txt', document='line', splits=off)) == lines
  with pytest.raises(Mistake, match=r"split 'val' is off \(splits.val=0\)"):
    text('notes.txt', 'val', document='line', splits=off)


def test_a_file_of_its_own(lines):
  pathlib.Path('held.txt').write_text('held out')
  give = dict(document='line', val_path='held.txt')
  assert all_of(text('notes.txt', 'val', **give)) == ['held out']
  train, test = text('notes.txt', **give), text('notes.txt', 'test', **give)
  assert sorted(all_of(train) + all_of(test)) == sorted(lines)
  assert all_of(test) == all_of(text('notes.txt', 'test', document='line'))


def test_bad_records(lines):
  rows = [
    '{"text": "good"}', '{"txet": "a"}', '{"text": 5}', '{"text": null}',
    '{"text": " \\n"}', '{"text": "\\ud800"}', '{}', '{"text": "also"}',
  ]  # fmt: skip
  pathlib.Path('a.jsonl').write_text('\n'.join(rows))
  skipped = text('a.jsonl', 'all', on_bad='skip')
  assert (all_of(skipped), skipped.skipped) == (['good', 'also'], 6)
  assert skipped.where(1) == 'a.jsonl:8'
  table = {
    1: "a.jsonl:1: no field 'text': did you mean 'txet'",
    2: "a.jsonl:1: field 'text' is no text but int",
    3: "a.jsonl:1: no field 'text'",
    4: "a.jsonl:1: field 'text' is empty",
    5: 'a.jsonl:1: .*surrogates not allowed',
    6: "a.jsonl:1: no field 'text'",
  }
  for number, message in table.items():
    pathlib.Path('a.jsonl').write_text(rows[number])
    with pytest.raises(Mistake, match=f"{message}.*on_bad='skip'") as error:
      text('a.jsonl', 'all')
    assert '\n' not in str(error.value)
    with pytest.raises(
      Mistake, match=r'a.jsonl holds no document \(1 bad ones skipped\)'
    ):
      text('a.jsonl', 'all', on_bad='skip')


def test_formats(lines):
  pathlib.Path('mixed').mkdir()
  pathlib.Path('mixed/a.md').write_text('a')
  pathlib.Path('mixed/b.json').write_text('{"text": "b"}')
  with pytest.raises(Mistake, match=r'several formats .*format='):
    text('mixed', 'all')
  assert all_of(text('mixed', 'all', format='text')) == ['a', '{"text": "b"}']
  assert all_of(text('mixed/*.json', 'all')) == ['b']
  with pytest.raises(Mistake, match="did you mean 'jsonl'"):
    text('mixed', format='json')
  pathlib.Path('plain').write_text('{"text": "c"}')
  assert all_of(text('plain', 'all', format='jsonl')) == ['c']


def test_the_folder_of_data_sets(lines, tmp_path_factory, monkeypatch):
  folder = tmp_path_factory.mktemp('data')
  (folder / 'set').mkdir()
  (folder / 'set' / 'a.txt').write_text('a')
  (folder / 'set' / 'b.txt').write_text('b')
  assert all_of(text('set/*.txt', 'all', data=str(folder))) == ['a', 'b']
  monkeypatch.setenv('GPTJAX_DATA', str(folder))
  assert all_of(text('set', 'all')) == ['a', 'b']
  assert all_of(text('notes.txt', 'all', document='line')) == lines
  with pytest.raises(Mistake) as error:
    text('sett/*.txt', 'all')
  assert str(folder) in str(error.value)
  assert "did you mean 'set'" in str(error.value)
  assert '\n' not in str(error.value)


def test_wrong_words(lines):
  for key, message in {
    'split': "split='vla': did you mean 'val'",
    'by': "by='vla'",
    'on_bad': "on_bad='vla'",
    'document': "document='vla'",
    'format': "format='vla'",
    'path': 'no file matches vla',
  }.items():
    with pytest.raises(Mistake, match=message):
      text(**{'path': 'notes.txt', key: 'vla'})
  for path in ('', None):
    with pytest.raises(Mistake, match='no path given'):
      text(path)


def test_a_config_makes_it(lines):
  config = dict(name='text', path='notes.txt', document='line', splits=None)
  task = lookup.make('tasks', config, 'c.mixture.tasks.notes', split='val', data=None)
  assert all_of(task) == all_of(text('notes.txt', 'val', document='line'))
