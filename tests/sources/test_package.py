"""Packages' data: read as files, no code imported."""

import json
import sys

import pytest

from gptjax.sources.package import package
from gptjax.words import Mistake


@pytest.fixture
def site(tmp_path, monkeypatch):
  (tmp_path / 'heavy_set' / 'data').mkdir(parents=True)
  (tmp_path / 'heavy_set' / '__init__.py').write_text('import no_such_module')
  monkeypatch.syspath_prepend(str(tmp_path))
  return tmp_path / 'heavy_set'


def test_the_data_file_is_read_and_the_code_is_not(site):
  rows = [{'text': 'a'}, {'text': 'b'}]
  (site / 'data' / 'all.json').write_text(json.dumps(rows))
  source = package('heavy_set')
  assert [source[i] for i in range(2)] == rows
  assert 'heavy_set' not in sys.modules
  (site / 'more.txt').write_text('plain')
  with pytest.raises(Mistake, match=r'needs file= of .*: data/all\.json, more\.txt'):
    package('heavy_set')
  assert package('heavy_set', 'more.txt')[0] == {'text': 'plain'}
  with pytest.raises(Mistake, match=r"no data file 'mroe\.txt': did you mean 'more"):
    package('heavy_set', 'mroe.txt')


def test_missing_packages(site):
  for name in ('no_such_package_here', 'heavy_set.data', 'sys', ''):
    with pytest.raises(Mistake, match=r'no package .* is installed'):
      package(name)
  with pytest.raises(Mistake, match='its data files: none'):
    package('heavy_set')


def test_chitchat():
  source = package('chitchat_dataset')
  assert len(source) == 7168
  assert source[0]['messages'][0][0]['text'] == 'Hello'
