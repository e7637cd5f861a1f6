"""The whole loop on a store that has no append, no rename and no lock."""

import signal

import pytest
from etils import epath

from gptjax import run, train
from gptjax.data import loader
from gptjax.report import page
from gptjax.words import Leave
from tests import crash, fakefs, tiny

pytestmark = pytest.mark.slow

PLACE = 'fake://bucket/run'


def quiet(line):
  pass


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  return tiny.get_config(f'text={tiny.write_corpus(tmp_path_factory.mktemp("corpus"))}')


@pytest.fixture(scope='module')
def unbroken(config, tmp_path_factory):
  """What a run leaves in a folder of this machine."""
  folder = tmp_path_factory.mktemp('runs') / 'unbroken'
  train.train(config, str(folder), say=quiet)
  return crash.outcome(folder)


@pytest.fixture(autouse=True)
def store():
  fakefs.clear()
  yield fakefs.STORE
  fakefs.clear()


def interrupt(monkeypatch, at, happen):
  """Lets something happen when the batch number `at` of a process is drawn."""
  draw, drawn = loader.DataSource.next, []

  def drawing(self, weights=None):
    drawn.append(1)
    if len(drawn) == at:
      happen()
    return draw(self, weights)

  monkeypatch.setattr(loader.DataSource, 'next', drawing)


def crashed():
  raise RuntimeError('the machine is gone')


def test_stopped_and_crashed_it_ends_as_a_local_run(
  config, unbroken, store, monkeypatch
):
  with monkeypatch.context() as patch:
    interrupt(patch, 8, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Leave, match='goes on from step 8'):
      train.train(config, PLACE, say=quiet)
  with monkeypatch.context() as patch:
    interrupt(patch, 6, crashed)
    with pytest.raises(RuntimeError, match='is gone'):
      train.train(config, PLACE, say=quiet)
  said = []
  result = train.train(config, PLACE, say=said.append)
  assert any('Going on from step 10 ' in line for line in said), said
  assert crash.outcome(epath.Path(PLACE)) == unbroken
  files = {name.removeprefix(f'{PLACE}/') for name in store}
  assert {'config.json', 'environment.txt', 'timings.jsonl', 'result.json'} <= files
  for folder in ('tokenizer/', 'shards/', 'tb/'):
    assert any(name.startswith(folder) for name in files), folder
  assert train.train(config, PLACE, say=said.append) == result
  assert 'is finished' in ''.join(said)


def test_what_reads_a_run_reads_it_there(config, store):
  config = config.copy_and_resolve_references()
  config.steps, config.evals.val.every = 4, 2
  train.train(config, PLACE, say=quiet)
  assert page.write([PLACE]) == f'{PLACE}/report.html'
  assert b'val/bits_per_byte' in store[f'{PLACE}/report.html']
  opened = run.open_run(PLACE, say=quiet)
  assert opened.step in (2, 4)
  assert opened.generate('the', max_tokens=3, temperature=0.0)
  before = {k: v for k, v in store.items() if 'checkpoints' in k}
  train.train(config, PLACE, fresh=True, say=quiet)
  moved = {k: v for k, v in store.items() if k.startswith(f'{PLACE}.1/')}
  assert before == {
    k.replace('run.1', 'run', 1): v for k, v in moved.items() if 'checkpoints' in k
  }


class Recording(dict):
  """A store that can say what it held after any of its changes."""

  def __init__(self):
    super().__init__()
    self._log = []

  @property
  def changes(self):
    return len(self._log)

  def after(self, changes):
    held = {}
    for key, value in self._log[:changes]:
      if value is None:
        del held[key]
      else:
        held[key] = value
    return held

  def __setitem__(self, key, value):
    super().__setitem__(key, value)
    self._log.append((key, value))

  def __delitem__(self, key):
    super().__delitem__(key)
    self._log.append((key, None))

  def pop(self, key, *default):
    if key in self:
      self._log.append((key, None))
    return super().pop(key, *default)


def test_gone_on_with_from_what_any_moment_left_it_ends_the_same(
  config, unbroken, monkeypatch
):
  recording = Recording()
  monkeypatch.setattr(fakefs, 'STORE', recording)
  train.train(config, PLACE, say=quiet)
  assert recording.after(recording.changes) == recording
  for part in (0.3, 0.55, 0.9):
    moment = recording.after(int(part * recording.changes))
    monkeypatch.setattr(fakefs, 'STORE', moment)
    train.train(config, PLACE, say=quiet)
    assert crash.outcome(epath.Path(PLACE)) == unbroken, part
