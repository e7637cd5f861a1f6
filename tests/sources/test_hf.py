"""Hugging Face datasets: the missing extra, and what is asked of the package."""

import sys
import types

import pytest

from gptjax.sources.hf import hf
from gptjax.tasks.text import text
from gptjax.words import Mistake


class FakeSet(list):
  cache_files = []


@pytest.fixture
def asked(monkeypatch):
  """A stand-in for the package, which notes what it is asked for."""
  calls = []

  def load_dataset(name, config, split):
    calls.append((name, config, split))
    if name == 'owner/missing':
      raise FileNotFoundError("Dataset 'owner/missing'\n doesn't exist on the Hub")
    return FakeSet({'text': f'row {i} of {split}'} for i in range(400))

  def load_from_disk(folder):
    calls.append(folder)
    return {'train': FakeSet([{'text': 'from disk'}])}

  fake = types.SimpleNamespace(load_dataset=load_dataset, load_from_disk=load_from_disk)
  monkeypatch.setitem(sys.modules, 'datasets', fake)
  return calls


def test_without_the_package_one_line_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)
  with pytest.raises(Mistake, match=r'hf:a/b needs .* pip install "gptjax\[hf\]"'):
    hf('a/b')


def test_names_configs_and_splits(asked, tmp_path):
  source = hf('owner/set')
  assert (len(source), source[7]) == (400, {'text': 'row 7 of train'})
  assert source.where(7) == 'hf:owner/set@train:8'
  assert hf('owner/set:small', 'validation').digest != source.digest
  assert hf('owner/set').digest == source.digest
  assert asked[:2] == [
    ('owner/set', None, 'train'),
    ('owner/set', 'small', 'validation'),
  ]
  assert hf(str(tmp_path))[0] == {'text': 'from disk'}
  with pytest.raises(
    Mistake, match="FileNotFoundError: Dataset 'owner/missing' doesn't"
  ):
    hf('owner/missing')


def test_the_task_reads_it(asked):
  task = text('hf:owner/set:small@validation', split='all')
  assert task.example(3).text == 'row 3 of validation'
  assert asked == [('owner/set', 'small', 'validation')]
