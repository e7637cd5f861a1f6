"""A run folder has one writer, one config, and a past that is never deleted."""

import json
import os
import signal
import subprocess
import sys

import pytest

from gptjax import folder
from gptjax.folder import open_folder, read_config
from gptjax.words import Failure, Mistake
from tests import fakefs

OPTIM = {'lr': 1e-3, 'betas': (0.9, 0.95)}
CONFIG = {'seed': 0, 'steps': 100, 'optim': OPTIM, 'x': None}


def quiet(line):
  pass


def begin(path, config=CONFIG, **settings):
  """A folder whose run made a step."""
  made = open_folder(path, config, **settings)
  (made.path / 'metrics.jsonl').write_text('{"step": 1}\n')
  made.close()


def test_a_new_folder_says_what_it_is(tmp_path):
  made = open_folder(tmp_path / 'runs' / 'a', CONFIG, overrides=['config.seed=0'])
  assert made.new
  assert made.changed == {}
  read = json.loads((made.path / 'config.json').read_text())
  assert read['format'] == folder.FORMAT
  assert read_config(made.path) == {
    **CONFIG,
    'optim': {'lr': 1e-3, 'betas': [0.9, 0.95]},
  }
  assert (made.path / 'overrides.txt').read_text() == 'config.seed=0\n'
  environment = (made.path / 'environment.txt').read_text()
  for word in ('jax: ', 'python: ', 'devices: 8 x cpu', 'command: ', 'code: '):
    assert word in environment
  made.close()
  begin(made.path)
  again = open_folder(made.path, CONFIG)
  assert not again.new
  assert (made.path / 'environment.txt').read_text().count('started: ') == 3
  again.close()


def test_environment_tells_no_secret(monkeypatch):
  monkeypatch.setenv('SOME_TOKEN', 'hunter2')
  monkeypatch.setattr(sys, 'argv', ['serve', '--api_key=hunter2', '--config.seed=1'])
  text = folder.environment()
  assert 'hunter2' not in text
  assert '--config.seed=1' in text


def test_a_changed_config_is_refused_but_where_it_may_change(tmp_path):
  begin(tmp_path / 'a')
  changed = {**CONFIG, 'steps': 200, 'seed': 1, 'optim': {**OPTIM, 'lr': 0.1}}
  with pytest.raises(Mistake) as caught:
    open_folder(tmp_path / 'a', changed)
  line = str(caught.value)
  assert 'seed: 0 -> 1' in line
  assert 'optim.lr: 0.001 -> 0.1' in line
  assert 'steps' not in line.split('another config')[1]
  assert read_config(tmp_path / 'a')['steps'] == 100
  opened = open_folder(tmp_path / 'a', {**CONFIG, 'steps': 200, 'new': None})
  assert opened.changed == {'steps': (100, 200)}  # A new key that is None says nothing.
  opened.close()
  assert read_config(tmp_path / 'a')['steps'] == 200
  opened = open_folder(tmp_path / 'a', {**CONFIG, 'seed': 5}, may_change=['s*'])
  assert opened.changed == {'steps': (200, 100), 'seed': (0, 5)}
  opened.close()


def test_a_run_that_never_made_a_step_is_begun_anew_under_any_config(tmp_path):
  made = open_folder(tmp_path / 'a', CONFIG)
  made.close()
  (made.path / 'tokenizer').mkdir()
  (made.path / 'tokenizer' / 'x').write_text('of the old data')
  open_folder(made.path, CONFIG).close()
  assert (made.path / 'tokenizer').exists()  # The same config: not made again.
  again = open_folder(made.path, {**CONFIG, 'seed': 1})
  again.close()
  assert again.new
  assert read_config(made.path)['seed'] == 1
  assert not (made.path / 'tokenizer').exists()
  (made.path / 'config.json').write_text('{"for')
  open_folder(made.path, CONFIG).close()
  assert read_config(made.path)['seed'] == 0


def test_a_refusal_gives_the_lock_back(tmp_path):
  begin(tmp_path / 'a')
  with pytest.raises(Mistake):
    open_folder(tmp_path / 'a', {**CONFIG, 'seed': 1})
  open_folder(tmp_path / 'a', CONFIG).close()


HOLDER = """
import sys, time
from gptjax.folder import _lock
from etils import epath
release = _lock(epath.Path(sys.argv[1]))
print('held', flush=True)
time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_is_killed(tmp_path):
  open_folder(tmp_path / 'a', CONFIG).close()
  command = [sys.executable, '-c', HOLDER, str(tmp_path / 'a')]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
    assert holder.stdout.readline() == 'held\n'
    try:
      for fresh in (False, True):
        with pytest.raises(Mistake, match=rf'in use by pid {holder.pid} on \S+'):
          open_folder(tmp_path / 'a', CONFIG, fresh=fresh)
      assert not (tmp_path / 'a.1').exists()
      assert read_config(tmp_path / 'a')['seed'] == 0  # Readers take no lock.
    finally:
      holder.send_signal(signal.SIGKILL)
  opened = open_folder(tmp_path / 'a', CONFIG)
  with pytest.raises(Mistake, match=f'pid {os.getpid()} '):
    open_folder(tmp_path / 'a', CONFIG)
  opened.close()


@pytest.mark.parametrize('where', ['local', 'remote'])
def test_fresh_moves_the_old_run_and_deletes_nothing(tmp_path, where):
  fakefs.clear()
  path = folder.epath.Path('fake://x/a' if where == 'remote' else tmp_path / 'a')
  open_folder(path, CONFIG).close()
  (path / 'tb').mkdir()
  (path / 'tb' / 'events').write_text('old')
  said = []
  opened = open_folder(path, {**CONFIG, 'seed': 1}, fresh=True, say=said.append)
  assert opened.new
  assert [p.name for p in path.iterdir() if p.name == 'tb'] == []
  opened.close()
  opened = open_folder(path, {**CONFIG, 'seed': 2}, fresh=True, say=said.append)
  opened.close()
  assert (path.parent / 'a.1' / 'tb' / 'events').read_text() == 'old'
  assert [read_config(path.parent / n)['seed'] for n in ('a.1', 'a.2', 'a')] == [
    0,
    1,
    2,
  ]
  assert len(said) == 2
  assert said[1].endswith('a.2.')
  fakefs.clear()


def test_fresh_keeps_the_lock_of_the_new_folder(tmp_path):
  open_folder(tmp_path / 'a', CONFIG).close()
  opened = open_folder(tmp_path / 'a', CONFIG, fresh=True, say=quiet)
  with pytest.raises(Mistake, match='in use'):
    open_folder(tmp_path / 'a', CONFIG)
  opened.close()


def test_a_folder_of_other_things_is_left_alone(tmp_path):
  (tmp_path / 'home').mkdir()
  (tmp_path / 'home' / 'thesis.tex').write_text('x')
  for fresh in (False, True):
    with pytest.raises(Mistake, match=r'no run folder.*thesis\.tex'):
      open_folder(tmp_path / 'home', CONFIG, fresh=fresh)
  assert [p.name for p in (tmp_path / 'home').iterdir()] == ['thesis.tex']
  (tmp_path / 'file').write_text('')
  with pytest.raises(Mistake, match='is a file'):
    open_folder(tmp_path / 'file', CONFIG)
  with pytest.raises(Failure, match='cannot write the run folder'):
    open_folder(tmp_path / 'file' / 'run', CONFIG)


def test_a_start_that_was_killed_early_is_begun_again(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / 'lock').write_text('pid 1 on nowhere')
  (tmp_path / 'a' / '.config.json.part').write_text('{"for')
  opened = open_folder(tmp_path / 'a', CONFIG)
  assert opened.new
  opened.close()


def test_configs_that_cannot_be_read(tmp_path):
  with pytest.raises(Mistake, match='no run folder'):
    read_config(tmp_path)
  (tmp_path / 'config.json').write_text('{"form')
  with pytest.raises(Mistake, match='damaged'):
    read_config(tmp_path)
  (tmp_path / 'config.json').write_text('{"format": 99, "config": {}}')
  with pytest.raises(Mistake, match='format 99'):
    read_config(tmp_path)
  with pytest.raises(Mistake, match=r'c\.a\.b is a set'):
    open_folder(tmp_path / 'a', {'a': {'b': {1}}})
