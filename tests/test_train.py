import json
import random
import signal

import numpy as np
import pytest

from gptjax import train
from gptjax.words import Failure, Leave, Mistake
from tests import crash, tiny


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('corpus'))


@pytest.fixture(scope='module')
def unbroken(corpus, tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs') / 'unbroken'
  assert crash.finish(corpus, folder) == 0, (folder.parent / 'unbroken.out').read_text()
  return folder


def lines(folder):
  text = (folder / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def config(corpus, **changes):
  c = tiny.get_config(f'text={corpus}')
  with c.unlocked():
    c.update(changes)
  if not c.evals:
    c.keep_best.metric = ''  # No evaluation gives it.
  return c


def test_a_run_learns_and_leaves_its_folder(unbroken):
  found = lines(unbroken)
  losses = [x['train/loss'] for x in found if 'train/loss' in x]
  assert losses[-1] < losses[0] - 0.5
  bits = [x['val/bits_per_byte'] for x in found if 'val/bits_per_byte' in x]
  assert [x['step'] for x in found if 'val/bits_per_byte' in x] == [8, 16, 24]
  assert bits[-1] < bits[0]
  for name in ('config.json', 'environment.txt', 'timings.jsonl', 'samples.md'):
    assert (unbroken / name).stat().st_size
  assert (unbroken / 'samples.md').read_text().count('## step') == 2
  assert list((unbroken / 'tb').iterdir())


def test_the_same_command_again_prints_the_result(corpus, unbroken):
  before = crash.outcome(unbroken)
  assert crash.finish(corpus, unbroken) == 0
  assert crash.outcome(unbroken) == before
  assert 'is finished' in (unbroken.parent / 'unbroken.out').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(3))
def test_killed_at_any_moment_it_ends_as_if_unbroken(corpus, unbroken, tmp_path, seed):
  folder = tmp_path / 'killed'
  draw = random.Random(seed)
  for step in sorted(draw.sample(range(2, 24, 2), 2)):
    process = crash.start(corpus, folder)
    crash.wait_for_step(folder, step, process)
    assert crash.stop(process, signal.SIGKILL) in (-signal.SIGKILL, 0)
  assert crash.finish(corpus, folder) == 0, (tmp_path / 'killed.out').read_text()
  assert crash.outcome(folder) == crash.outcome(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize('kind', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_with_75(corpus, unbroken, tmp_path, kind):
  folder = tmp_path / 'asked'
  process = crash.start(corpus, folder)
  crash.wait_for_step(folder, 6, process)
  code = crash.stop(process, kind)
  said = (tmp_path / 'asked.out').read_text()
  assert code == 75, said
  assert 'the same command goes on from step' in said
  assert 'Traceback' not in said
  assert crash.finish(corpus, folder) == 0
  assert crash.outcome(folder) == crash.outcome(unbroken)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_to_the_same_end(
  corpus, unbroken, tmp_path
):
  folder = tmp_path / 'damaged'
  process = crash.start(corpus, folder)
  crash.wait_for_step(folder, 12, process)
  crash.stop(process, signal.SIGTERM)
  newest = max(int(p.name) for p in (folder / 'checkpoints').glob('[0-9]*'))
  victim = max(
    (p for p in (folder / 'checkpoints' / str(newest)).rglob('*') if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  content = bytearray(victim.read_bytes())
  content[len(content) // 2] ^= 1
  victim.write_bytes(content)
  process = crash.start(corpus, folder)  # Goes on from the one before, saves anew.
  crash.wait_for_step(folder, 18, process)
  crash.stop(process, signal.SIGKILL)
  assert list((folder / 'checkpoints' / 'damaged').iterdir())
  assert crash.finish(corpus, folder) == 0
  assert crash.outcome(folder) == crash.outcome(unbroken)


@pytest.mark.parametrize('kind', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_leaves_at_once(corpus, tmp_path, kind):
  with pytest.raises(Leave, match='same command'):
    train.train(
      config(corpus), str(tmp_path / 'a'), say=lambda line: signal.raise_signal(kind)
    )
  assert not (tmp_path / 'a' / 'metrics.jsonl').exists()


def test_a_second_process_is_refused(corpus, tmp_path):
  folder = tmp_path / 'run'
  process = crash.start(corpus, folder)
  try:
    crash.wait_for_step(folder, 1, process)
    with pytest.raises(Mistake, match=f'pid {process.pid}'):
      train.train(config(corpus), str(folder), say=lambda line: None)
  finally:
    crash.stop(process, signal.SIGKILL)


def test_steps_may_change_but_not_the_model(corpus, tmp_path):
  said = []
  folder = tmp_path / 'run'
  train.train(config(corpus, steps=4, evals={}), str(folder), say=said.append)
  changed = config(corpus, steps=4, evals={})
  changed.model.embed = 64
  with pytest.raises(Mistake, match=r'model\.embed: 32 -> 64'):
    train.train(changed, str(folder), say=said.append)
  said.clear()
  train.train(config(corpus, steps=6, evals={}), str(folder), say=said.append)
  assert any('learning rate differs from step' in line for line in said), said
  assert lines(folder)[-1]['step'] == 6


@pytest.mark.slow
def test_init_takes_weights_and_tokenizer_only(corpus, tmp_path):
  quiet = dict(say=lambda line: None)
  c = config(corpus, steps=3, evals={}, save_every=0)
  train.train(c, str(tmp_path / 'a'), **quiet)
  c = config(corpus, steps=1, evals={}, log_every=1, init=str(tmp_path / 'a'))
  c.optim.lr = 0.0
  train.train(c, str(tmp_path / 'b'), **quiet)
  one, two = (params(tmp_path / name) for name in 'ab')
  assert one.keys() == two.keys()
  for name, leaf in one.items():
    np.testing.assert_array_equal(leaf, two[name], err_msg=name)
  c.model.embed = 16
  with pytest.raises(
    Mistake, match=r'embed/tokens is \[384, 32\] there and \[384, 16\] here'
  ):
    train.train(c, str(tmp_path / 'c'), **quiet)


def params(folder):
  from gptjax import run, tree

  return {k: np.asarray(v) for k, v in tree.paths(run.open_run(folder).weights).items()}


@pytest.mark.slow
def test_resume_of_another_run_goes_on_with_its_data(corpus, tmp_path):
  quiet = dict(say=lambda line: None)
  c = config(corpus, steps=8, evals={}, log_every=1)
  train.train(c, str(tmp_path / 'whole'), **quiet)
  c.steps = 4
  c.optim.decay = 'constant'
  train.train(c, str(tmp_path / 'a'), **quiet)
  c.steps = 8
  c.resume = str(tmp_path / 'a')
  train.train(c, str(tmp_path / 'b'), **quiet)
  c.resume = None
  train.train(c, str(tmp_path / 'c'), **quiet)
  assert lines(tmp_path / 'b') == lines(tmp_path / 'c')[-len(lines(tmp_path / 'b')) :]


def test_early_stopping_ends_the_run(corpus, tmp_path):
  said = []
  c = config(corpus, steps=40)
  c.optim.lr = 0.0  # No progress, ever.
  c.evals.val.every = 4
  c.early_stop = dict(metric='val/bits_per_byte', mode='min', patience=2)
  result = train.train(c, str(tmp_path / 'run'), say=said.append)
  assert result['step'] == 12
  assert not (tmp_path / 'run' / 'checkpoints' / '40').exists()


def test_bad_steps_in_a_row_end_the_run(corpus, tmp_path):
  c = config(corpus, steps=40, evals={}, max_bad_steps=3)
  c.optim.lr = 1e30
  with pytest.raises(Failure, match='3 updates in a row'):
    train.train(c, str(tmp_path / 'run'), say=lambda line: None)
  bad = [x['train/bad'] for x in lines(tmp_path / 'run')]
  assert bad[0] == 0.0
  assert bad[-1] == 1.0


def test_stalled_is_a_function_of_the_log():
  class Log:
    def __init__(self, values):
      self.values = values

    def history(self, name):
      return list(enumerate(self.values))

  stop = dict(metric='val/x', mode='min', patience=2)
  assert not train.stalled(Log([]), stop)
  assert not train.stalled(Log([3, 2, 1]), stop)
  assert not train.stalled(Log([3, 2, 1.9, 2]), stop)
  assert train.stalled(Log([3, 2, 2, 2.1]), stop)
  assert train.stalled(Log([3, float('nan'), float('nan')]), stop)
  assert train.stalled(Log([1, 2, 2]), {**stop, 'mode': 'max'}) is False
  assert train.stalled(Log([2, 1, 1]), {**stop, 'mode': 'max'})
  assert not train.stalled(Log([2, 1, 1]), {**stop, 'metric': ''})
