"""TFDS without TensorFlow, made by the very recipe of docs/data.md."""

import json
import pathlib
import pickle
import re
import subprocess
import sys

import pytest

from gptjax.sources.tfds import tfds
from gptjax.tasks.text import text
from gptjax.words import Mistake

DOCS = pathlib.Path(__file__).resolve().parents[2] / 'docs' / 'data.md'
ROWS = [f'document {i} é\n一' for i in range(300)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder in which the recipe was followed."""
  root = tmp_path_factory.mktemp('tfds')
  (root / 'my_text.jsonl').write_text(
    ''.join(json.dumps({'text': row, 'other': 1}) + '\n' for row in ROWS)
  )
  blocks = re.findall(r'```python\n(.*?)```', DOCS.read_text(encoding='utf-8'), re.S)
  (recipe,) = [b for b in blocks if 'GeneratorBasedBuilder' in b]
  (root / 'my_text.py').write_text(recipe, encoding='utf-8')
  done = subprocess.run(
    [sys.executable, 'my_text.py'],
    cwd=root,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return root


def test_the_recipe_of_the_docs_reads_back(folder):
  source = tfds('my_text', data_dir=str(folder / 'sets'))
  assert sorted(source[i]['text'].decode() for i in range(len(source))) == sorted(ROWS)
  assert source.where(4) == 'tfds:my_text@train:5'
  again = pickle.loads(pickle.dumps(source))
  assert again[7] == source[7]
  part = tfds('my_text', 'train[:10%]', str(folder / 'sets'))
  assert [part[i] for i in range(len(part))] == [source[i] for i in range(30)]
  assert part.digest != source.digest
  assert 'tensorflow' not in sys.modules


def test_the_task_gives_its_texts(folder):
  data = str(folder / 'sets')
  whole = text('tfds:my_text', split='all', data=data)
  assert sorted(whole.example(i).text for i in range(len(whole))) == sorted(ROWS)
  parts = [text('tfds:my_text', split=s, data=data) for s in ('train', 'val', 'test')]
  assert sum(map(len, parts)) == len(ROWS)
  assert len(text('tfds:my_text@train[:10%]', split='all', data=data)) == 30


def test_mistakes(folder):
  data = str(folder / 'sets')
  table = {
    ('my_text', 'trian'): "no split 'trian': did you mean 'train'",
    ('nothing_of_the_kind', 'train'): r'no such set in .*docs/data\.md',
    ('mnist', 'train'): r'tfds:mnist is not prepared in .*docs/data\.md',
  }
  for (name, split), message in table.items():
    with pytest.raises(Mistake, match=message) as error:
      tfds(name, split, data)
    assert '\n' not in str(error.value)


def test_a_set_of_another_format(folder):
  info = folder / 'other' / 'my_text' / '1.0.0'
  info.parent.mkdir(parents=True)
  import shutil

  shutil.copytree(folder / 'sets' / 'my_text' / '1.0.0', info)
  meta = json.loads((info / 'dataset_info.json').read_text())
  meta['fileFormat'] = 'tfrecord'
  (info / 'dataset_info.json').write_text(json.dumps(meta))
  with pytest.raises(Mistake, match=r"tfrecord: prepare it with .*'array_record'"):
    tfds('my_text', data_dir=str(folder / 'other'))
