"""Files are written whole, and why they are not is said in a few words."""

import os
import pathlib

import pytest
from etils import epath

from gptjax import files
from gptjax.words import Failure
from tests import fakefs


@pytest.fixture(params=['local', 'remote'])
def folder(request, tmp_path):
  fakefs.clear()
  yield epath.Path('fake://x/y' if request.param == 'remote' else tmp_path)
  fakefs.clear()


def test_trees(folder):
  for name, data in [('a', b'1'), ('b/c', b'2'), ('b/d/e', b'3')]:
    (folder / 'one' / name).parent.mkdir(parents=True, exist_ok=True)
    files.write(folder / 'one' / name, data)
  assert list(files.under(folder / 'one')) == ['a', 'b/c', 'b/d/e']
  files.copy_tree(folder / 'one', folder / 'two')
  files.move(folder / 'two', folder / 'three' / 'four')
  assert not (folder / 'two').exists()
  assert (folder / 'three/four/b/d/e').read_bytes() == b'3'
  # sha256 of '3', by coreutils.
  assert files.sha256(folder / 'one/b/d/e').startswith(
    '4e07408562bedb8b60ce05c1decfe3a'
  )
  assert files.free_name(folder / 'one').name == 'one.1'
  files.copy_tree(folder / 'one', folder / 'one.1')
  assert files.free_name(folder / 'one').name == 'one.2'


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  path = epath.Path(tmp_path / 'config.json')
  files.write(path, 'old')

  def full(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space'):
    files.write(path, 'new')
  assert path.read_text() == 'old'
  assert [p.name for p in pathlib.Path(tmp_path).iterdir()] == ['config.json']


def test_local_or_not(tmp_path):
  assert files.is_local(tmp_path)
  assert files.is_local('runs/a')
  assert not files.is_local('gs://bucket/run')
  assert not files.is_local(epath.Path('gs://bucket/run'))


@pytest.mark.parametrize(
  ('error', 'text'),
  [
    (OSError(28, 'No space left on device', '/x'), 'No space left on device'),
    (ValueError('UNKNOWN: x: Disk quota exceeded [y]'), 'Disk quota exceeded'),
    (OSError(39, 'Directory not empty', '/x'), 'Directory not empty'),
    (ValueError('one\ntwo'), 'ValueError: one'),
    (ValueError(), 'ValueError: no message'),
  ],
)
def test_causes(error, text):
  assert files.cause(error) == text


def test_reporting():
  found = pytest.raises(Failure, match=r'^cannot write: No space left on device\.$')
  with found, files.reporting('cannot write'):
    raise OSError(28, 'No space left on device')
