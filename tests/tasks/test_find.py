"""Where data sets are looked for, and what is said when they are not there."""

import pytest

from gptjax.tasks.find import data_folder, find_data
from gptjax.words import Mistake


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.delenv('GPTJAX_DATA', raising=False)
  (tmp_path / 'tinyshakespeare').mkdir()
  (tmp_path / 'tinyshakespeare' / 'input.txt').write_text('First Citizen:')
  return tmp_path


def test_the_argument_comes_before_the_variable(folder, monkeypatch):
  expected = str(folder / 'tinyshakespeare' / 'input.txt')
  assert find_data('tinyshakespeare', str(folder)) == expected
  monkeypatch.setenv('GPTJAX_DATA', '/elsewhere')
  assert find_data('tinyshakespeare', str(folder)) == expected
  assert data_folder() == '/elsewhere'
  monkeypatch.setenv('GPTJAX_DATA', str(folder))
  assert find_data('tinyshakespeare') == expected
  assert find_data('tinyshakespeare/input.txt') == expected


def test_what_is_missing_is_one_line(folder):
  (folder / 'tinyshakespeare' / 'input.txt').unlink()
  with pytest.raises(Mistake) as error:
    find_data('tinyshakespeare', str(folder))
  for part in ('tinyshakespeare', str(folder), 'karpathy/char-rnn', 'public domain'):
    assert part in str(error.value)
  assert '\n' not in str(error.value)
  with pytest.raises(Mistake, match=r'--data=DIR, c\.data or GPTJAX_DATA.*karpathy'):
    find_data('tinyshakespeare')
  with pytest.raises(Mistake, match="Did you mean 'tinyshakespeare'"):
    find_data('tinyshakespear', str(folder))
