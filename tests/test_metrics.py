"""Files that end as an unbroken run's, numbers that read back, and the speeds shown."""

import io
import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gptjax import metrics, progress
from gptjax.metrics import number, open_log
from gptjax.words import Failure, Max, Mistake, Sum
from tests import fakefs

FILES = (metrics.METRICS, metrics.SAMPLES)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_float32_reads_back_to_the_bit(value):
  text = metrics.line(1, {'x': number(np.float32(value))})
  back = json.loads(text)['x']
  assert np.float32(back).tobytes() == np.float32(value).tobytes()
  assert len(json.dumps(back)) <= len(json.dumps(float(value)))


def test_numbers():
  assert number(Sum(jnp.float32(3), jnp.float32(2))) == 1.5
  assert number(Sum(jnp.float32(1), jnp.int32(3))) == 0.33333334  # float32's digits
  assert number(Max(jnp.float32(0.1))) == 0.1
  assert number(0.1234567890123) == 0.1234567890123
  assert number(np.float64(1) / 3) == 1 / 3
  assert number(jnp.bfloat16(0.5)) == 0.5
  assert number(jnp.int32(7)) == 7
  assert isinstance(number(True), int)
  assert math.isnan(number(Sum(0.0, 0.0)))
  assert number(Sum(1.0, 0.0)) == math.inf
  with pytest.raises(ValueError, match=r'\[3\]'):
    number(jnp.zeros(3))


def test_lines_are_flat_and_non_finite_is_a_string(tmp_path):
  log = open_log(tmp_path, tensorboard=False)
  log.write(200, 'train', {'loss': np.float32(2.31), 'grad': Sum(0.0, 0.0)})
  log.write(200, 'val', {'a': math.inf, 'b': -math.inf, 'n': 3})
  log.close()
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert lines == [
    '{"step": 200, "train/loss": 2.31, "train/grad": "nan"}',
    '{"step": 200, "val/a": "inf", "val/b": "-inf", "val/n": 3}',
  ]
  first, second = metrics.read_lines(tmp_path / 'metrics.jsonl')
  assert math.isnan(first['train/grad'])
  assert second['val/b'] == -math.inf


class Slow:
  """A value that may be read only after the next step was begun."""

  def __init__(self):
    self.there = False

  def __array__(self, dtype=None, copy=None):
    assert self.there, 'the host waited for the step that it had just begun'
    return np.asarray(1, np.float32)


def test_later_never_waits_for_the_newest(tmp_path):
  log = open_log(tmp_path, tensorboard=False)
  first, second = Slow(), Slow()
  assert log.later(1, {'loss': first}) is None
  first.there = True
  assert log.later(2, {'loss': second}) == (1, {'train/loss': 1.0})
  second.there = True
  log.write(2, 'val', {'loss': 0.5})  # What is held goes first.
  assert [x['step'] for x in metrics.read_lines(tmp_path / 'metrics.jsonl')] == [
    1,
    2,
    2,
  ]
  assert log.history('train/loss') == [(1, 1.0), (2, 1.0)]
  assert log.history('val/loss') == [(2, 0.5)]
  log.close()


def run(folder, first, last, offsets=None, kill=False, saves=None):
  """Steps of a small loop in the order of DESIGN 6: save, evaluate, step."""
  log = open_log(folder, offsets, step=first)
  for step in range(first, last + 1):
    if step % 4 == 0 and saves is not None:
      saves[step] = log.offsets()
    if step % 2 == 0:
      log.write(step, 'val', {'loss': 1 / (step + 1)})
      log.sample(f'## step {step}\n\nhello')
    if step < last:
      log.later(step + 1, {'loss': jnp.float32(1) / (step + 1)})
      log.time(step + 1, {'seconds': 0.1})
  if kill:  # Nothing is closed, and the last line is cut.
    with open(folder / 'metrics.jsonl', 'a') as f:
      f.write('{"step": 1')
  else:
    log.close()


@pytest.mark.parametrize('where', ['local', 'remote'])
def test_files_cut_at_a_restore_equal_an_unbroken_run(tmp_path, where):
  fakefs.clear()
  whole, broken = (
    metrics.epath.Path(f'fake://x/{n}' if where == 'remote' else tmp_path / n)
    for n in ('whole', 'broken')
  )
  for folder in (whole, broken):
    folder.mkdir()
  run(whole, 0, 12)
  saves = {}
  run(broken, 0, 7, kill=where == 'local', saves=saves)
  run(broken, 4, 10, saves[4], saves=saves, kill=where == 'local')
  run(broken, 8, 12, saves[8])
  for name in FILES:
    assert (broken / name).read_bytes() == (whole / name).read_bytes()
  assert (whole / 'samples.md').read_text().count('## step') == 7
  run(broken, 0, 12)  # Nothing was saved: the run begins again.
  assert (broken / 'metrics.jsonl').read_bytes() == (
    whole / 'metrics.jsonl'
  ).read_bytes()
  fakefs.clear()


def test_a_line_cut_short_does_not_spoil_the_next(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "train/x": 1}\n{"step": 2, "tr')
  log = metrics.open_log(tmp_path, {'metrics.jsonl': 60}, step=3, say=lambda line: None)
  log.write(3, 'val', {'x': 1.0})
  log.close()
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [1, 3]


def test_a_log_shorter_than_the_checkpoint_knew_is_said(tmp_path):
  said = []
  log = open_log(tmp_path, {'metrics.jsonl': 100}, say=said.append)
  log.write(3, 'val', {'loss': 1.0})
  log.close()
  assert 'lacks 100 bytes' in said[0]
  assert (tmp_path / 'metrics.jsonl').read_text() == '{"step": 3, "val/loss": 1.0}\n'


def test_tensorboard_hides_what_a_restore_cut(tmp_path):
  from tensorboardX.proto import event_pb2
  from tensorboardX.record_writer import masked_crc32c  # noqa: F401 (it is there)

  run(tmp_path, 0, 6)
  run(tmp_path, 4, 8, {})
  starts = []
  for path in sorted((tmp_path / 'tb').iterdir()):
    data = path.read_bytes()
    at = 0
    while at < len(data):
      size = int.from_bytes(data[at : at + 8], 'little')
      event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
      if event.HasField('session_log'):
        starts.append(event.step)
      at += 16 + size
  assert starts == [5]


@pytest.mark.parametrize('track', ['wandb', 'trackio'])
def test_trackers(tmp_path, monkeypatch, track):
  calls = []
  fake = types.ModuleType(track)
  fake.init = lambda **kwargs: calls.append(('init', kwargs))
  fake.log = lambda values, step: calls.append(('log', values, step))
  fake.finish = lambda: calls.append(('finish',))
  monkeypatch.setitem(sys.modules, track, fake)
  log = open_log(tmp_path / '.', track=track, config={'seed': 0}, tensorboard=False)
  log.write(3, 'val', {'loss': 1.0})
  log.close()
  assert calls[0][1]['config'] == {'seed': 0}
  assert calls[1:] == [('log', {'val/loss': 1.0}, 3), ('finish',)]
  monkeypatch.setitem(sys.modules, track, None)
  with pytest.raises(Mistake, match=r"pip install 'gptjax\[track\]'"):
    open_log(tmp_path, track=track)
  with pytest.raises(Mistake, match="did you mean 'wandb'"):
    open_log(tmp_path, track='wand')


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / 'run').write_text('')
  with pytest.raises(Failure, match='cannot write the log'):
    open_log(tmp_path / 'run')


def test_a_full_disk_is_one_line(tmp_path):
  log = open_log(tmp_path, tensorboard=False)
  log._files[metrics.METRICS] = open('/dev/full', 'ab')  # noqa: SIM115
  with pytest.raises(Failure, match=r'cannot write .*metrics.jsonl: No space left'):
    log.write(1, 'train', {'loss': 1.0})


def test_a_broken_line_is_named(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n[1, 2]\n')
  with pytest.raises(Mistake, match=r'metrics.jsonl has a line .*\[1, 2\]'):
    list(metrics.read_lines(path))


# Progress.


def test_plain_lines_come_now_and_then():
  out = io.StringIO()
  with progress.Progress(100, 10, console=Console(file=out, width=40)) as bar:
    for step in range(11, 101):
      bar.update(step, loss=2.0, tokens_per_s=12345.6, mfu=0.4123)
    bar.say('[red]as it is[/red] ' + 'x' * 60)
  lines = out.getvalue().splitlines()
  assert lines[0] == 'step 11/100  loss 2.0000  12,346 tokens/s  MFU 41.2 %'
  assert lines[1].startswith('step 100/100')
  assert lines[2:] == ['[red]as it is[/red] ' + 'x' * 60]


def test_a_bar_on_a_terminal_leaves_it_clean():
  out = io.StringIO()
  console = Console(file=out, force_terminal=True, width=100)
  with progress.Progress(100, console=console) as bar:
    bar.update(50, loss=2.5)
    bar.say('a line')
  text = out.getvalue()
  assert '50/100' in text
  assert 'loss 2.5000' in text
  assert 'a line' in text
  assert text.rindex('\x1b[?25h') > text.rindex('\x1b[?25l')  # The cursor is back.


def test_a_narrow_terminal_shows_what_fits(monkeypatch):
  out = io.StringIO()
  console = Console(file=out, force_terminal=True, width=40)
  with progress.Progress(100, console=console) as bar:
    bar.update(49, loss=2.5, tokens_per_s=12345.6, mfu=0.4)
    bar.update(50, loss=2.5, tokens_per_s=12345.6, mfu=0.4)
  text = out.getvalue()
  assert '50/100' in text
  assert 'loss 2.5000' in text
  assert 'left' in text
  assert 'tokens/s' not in text
  monkeypatch.setenv('COLUMNS', '30')
  lines = progress.parameter_table({'a': jnp.zeros((3, 4))}).splitlines()
  assert lines[1].split() == ['a', '12']


def test_parameter_table(monkeypatch):
  monkeypatch.setenv('COLUMNS', '80')
  params = {'a': {'w': jnp.zeros((3, 4))}, 'b': jnp.zeros((), jnp.bfloat16)}
  lines = progress.parameter_table(params).splitlines()
  assert lines[1].split() == ['a/w', '3x4', 'float32', '12', '92.3', '%']
  assert lines[2].split()[:4] == ['b', '1', 'bfloat16', '1']
  assert lines[3].split() == ['all', '13', '100.0', '%']
  assert len({len(line) for line in lines}) == 1


def test_peaks():
  device = types.SimpleNamespace(platform='tpu', device_kind='TPU v5 lite')
  assert progress.peak_flops([device] * 4) == 4 * 197e12
  device = types.SimpleNamespace(platform='gpu', device_kind='NVIDIA A100-SXM4-80GB')
  assert progress.peak_flops([device]) == 312e12
  device = types.SimpleNamespace(platform='gpu', device_kind='NVIDIA H100 PCIe')
  assert progress.peak_flops([device]) == 756e12
  device = types.SimpleNamespace(platform='gpu', device_kind='Something New')
  assert progress.peak_flops([device]) is None
  kinds = list(progress.PEAKS)
  for i, kind in enumerate(kinds):  # A shorter name would hide a longer one.
    assert not any(kind.startswith(earlier) for earlier in kinds[:i])
  measured = progress.peak_flops()
  assert 1e9 < measured < 1e14
  assert progress.peak_flops() == measured  # Once a process.


def test_stopwatch_and_memory():
  watch = progress.Stopwatch()
  with watch.over('data'):
    sum(range(100_000))
  with watch.over('data'):
    pass
  lap = watch.lap()
  assert 0 < lap['data_seconds'] <= lap['seconds']
  assert 'data_seconds' not in watch.lap()
  assert progress.memory()['host_bytes'] > 10_000_000


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0.4, '0:00'), (65, '1:05'), (3661, '1:01:01'), (90_061, '1 d 01:01')],
)
def test_duration(seconds, text):
  assert progress.duration(seconds) == text


def test_device_values_are_fetched_ahead(tmp_path):
  log = open_log(tmp_path, tensorboard=False)
  log.later(1, {'loss': Sum(jnp.float32(4), jnp.float32(2)), 'n': jax.device_put(3)})
  assert log.flush() == (1, {'train/loss': 2.0, 'train/n': 3})
  assert log.flush() is None
  log.close()
