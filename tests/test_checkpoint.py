"""Saves that are whole or not there, and any flipped bit found."""

import contextlib
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gptjax import files, manifest, sharding, tree
from gptjax.checkpoint import open_checkpoints, restore_weights
from gptjax.words import Failure, Mistake, TrainState
from tests import fakefs


def make_state(seed: int = 0) -> TrainState:
  draw = np.random.default_rng(seed)
  weight = jnp.asarray(draw.normal(size=(8, 16)), jnp.float32)
  params = {
    'layers': {'0:4:2': {'mlp': {'up': weight, 'scale': jnp.ones(4, jnp.bfloat16)}}},
    'embed': {'tokens': jnp.asarray(draw.normal(size=(16, 8)), jnp.float32)},
  }
  opt_state = ({'mu': weight * 2, 'count': jnp.int32(seed)}, (), [jnp.zeros((0, 2))])
  return TrainState(jnp.int32(seed), params, opt_state, jax.random.key(seed))


def abstract(state: Any) -> Any:
  return jax.eval_shape(lambda: state)


def same(a: Any, b: Any) -> bool:
  return jax.tree.structure(a) == jax.tree.structure(b) and tree.digest(
    a
  ) == tree.digest(b)


def save_all(folder, numbers, **kwargs):
  """Saves steps whose content follows from their number."""
  saves = open_checkpoints(folder, **kwargs)
  for n in numbers:
    assert saves.save(n, make_state(n), {'rows': n}, {'metrics.jsonl': 10 * n})
  saves.close()
  return open_checkpoints(folder, **kwargs)


def save_and_close(saves, n):
  saves.save(n, make_state(n), {}, {})
  saves.close()


def flip(path, rng) -> None:
  data = bytearray(path.read_bytes())
  data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  path.write_bytes(bytes(data))


def test_a_step_comes_back_to_the_bit(tmp_path):
  saves = open_checkpoints(tmp_path)
  data = {'rows': 2**70, 'digest': 'ab', 'order': [np.arange(3, dtype=np.int64), None]}
  saves.save(5, make_state(5), data, {'metrics.jsonl': 50, 'samples.md': 7})
  got = saves.restore(abstract(make_state(0)))
  assert got.step == 5
  assert same(got.state, make_state(5))
  draw = jax.random.normal(got.state.key, (3,))
  np.testing.assert_array_equal(draw, jax.random.normal(jax.random.key(5), (3,)))
  assert got.data['rows'] == 2**70
  assert got.data['order'][0].dtype == np.int64
  np.testing.assert_array_equal(got.data['order'][0], [0, 1, 2])
  assert got.offsets == {'metrics.jsonl': 50, 'samples.md': 7}
  saves.close()


def test_nothing_to_restore_in_a_new_folder(tmp_path):
  saves = open_checkpoints(tmp_path / 'new')
  assert saves.restore(abstract(make_state())) is None
  assert saves.latest() is None
  assert saves.best() is None
  saves.close()


def test_what_is_donated_after_save_is_saved_as_it_was(tmp_path):
  saves = open_checkpoints(tmp_path)
  state = {'w': jnp.arange(2_000_000, dtype=jnp.float32)}
  step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
  jax.block_until_ready(step(jax.tree.map(jnp.copy, state)))
  saves.save(1, state, {}, {})
  jax.block_until_ready(step(state))  # While it is being written.
  got = saves.restore({'w': jax.ShapeDtypeStruct((2_000_000,), jnp.float32)})
  np.testing.assert_array_equal(got.state['w'], np.arange(2_000_000, dtype=np.float32))
  saves.close()


def test_restores_onto_another_mesh(tmp_path):
  def laid_out(state, mesh, spec):
    def one(x):
      return NamedSharding(mesh, spec if x.ndim == 2 and x.size else PartitionSpec())

    return jax.tree.map(one, state)

  rows = sharding.make_mesh({'data': 8})
  both = sharding.make_mesh({'data': 2, 'tensor': 4})
  state = make_state(3)
  here = laid_out(state, rows, PartitionSpec('data'))
  there = laid_out(state, both, PartitionSpec('data', 'tensor'))
  saves = open_checkpoints(tmp_path)
  saves.save(3, jax.device_put(state, here), {}, {})
  wanted = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, there
  )
  got = saves.restore(wanted)
  assert same(got.state, state)
  assert got.state.params['embed']['tokens'].sharding == there.params['embed']['tokens']
  assert len(got.state.key.devices()) == 8
  saves.close()


def test_a_flipped_bit_in_the_newest_falls_back_and_its_number_is_free(tmp_path):
  said = []
  saves = save_all(tmp_path, [10, 20, 30], say=said.append)
  array = max((tmp_path / '30' / 'state').rglob('d/*'), key=lambda p: p.stat().st_size)
  flip(array, random.Random(0))
  got = saves.restore(abstract(make_state()))
  assert got.step == 20
  assert same(got.state, make_state(20))
  assert got.data == {'rows': 20}
  assert len(said) == 1
  assert array.name in said[0]
  assert (tmp_path / 'damaged' / '30').is_dir()
  assert not saves.save(20, make_state(20), {}, {})  # It was just restored.
  assert saves.save(30, make_state(31), {'rows': 31}, {})
  saves.close()
  again = open_checkpoints(tmp_path)
  assert again.restore(abstract(make_state())).data == {'rows': 31}
  flip(tmp_path / '30' / 'extra.json', random.Random(1))
  assert again.restore(abstract(make_state())).step == 20
  assert (tmp_path / 'damaged' / '30.1').is_dir()  # The first one is still there.
  again.close()


def test_thirty_random_bits_are_all_found(tmp_path):
  save_all(tmp_path, [10, 20]).close()
  rng = random.Random(1)
  found = sorted(p for p in (tmp_path / '20').rglob('*') if p.is_file())
  assert len(found) > 6
  reader = open_checkpoints(tmp_path, read_only=True, say=lambda line: None)
  chosen = [*found, *rng.choices(found, k=30 - len(found))]
  for path in chosen:
    if not path.stat().st_size:
      continue
    before = path.read_bytes()
    flip(path, rng)
    assert reader.restore(abstract(make_state())).step == 10, path
    path.write_bytes(before)
  assert reader.restore(abstract(make_state())).step == 20
  reader.close()


@pytest.mark.parametrize('harm', ['cut', 'missing', 'longer', 'no manifest'])
def test_a_harmed_file_is_found(tmp_path, harm):
  said = []
  saves = save_all(tmp_path, [10, 20], say=said.append)
  path = tmp_path / '20' / 'extra.json'
  if harm == 'cut':
    path.write_bytes(path.read_bytes()[:-1])
  elif harm == 'longer':
    path.write_bytes(path.read_bytes() + b' ')
  elif harm == 'missing':
    path.unlink()
  else:
    (tmp_path / '20' / 'MANIFEST.json').unlink()
    saves = open_checkpoints(tmp_path, say=said.append)
  assert saves.restore(abstract(make_state())).step == 10
  assert len(said) == 1
  assert (tmp_path / 'damaged' / '20').is_dir()
  saves.close()


def test_a_reader_changes_nothing(tmp_path):
  save_all(tmp_path, [10, 20]).close()
  (tmp_path / '30' / 'state').mkdir(parents=True)  # Being written by the run.
  flip(tmp_path / '20' / 'extra.json', random.Random(0))
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  said = []
  got = restore_weights(
    tmp_path, {'params': abstract(make_state().params)}, say=said.append
  )
  assert got[0] == 10
  assert same(got[1]['params'], make_state(10).params)
  assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')} == before
  assert len(said) == 1
  with pytest.raises(Failure, match='damaged'):
    restore_weights(tmp_path, {'params': {}}, step=20, say=said.append)
  with pytest.raises(Mistake, match=r'no step 15.*10, 20'):
    restore_weights(tmp_path, {'params': {}}, step=15, say=said.append)
  with pytest.raises(Mistake, match='no checkpoint'):
    restore_weights(tmp_path / 'none', {'params': {}})


def test_saves_that_are_refused_raise(tmp_path):
  saves = save_all(tmp_path, [10, 20])
  with pytest.raises(Failure, match='refused to save step 20'):
    saves.save(20, make_state(20), {}, {})
  with pytest.raises(Failure, match='set'):
    saves.save(30, make_state(30), {'seen': {1, 2}}, {})
  saves.close()
  assert saves.steps() == [10, 20]


def test_differing_leaves_are_named(tmp_path):
  saves = save_all(tmp_path, [10])
  state = make_state()

  def wanted(**params):
    return abstract(state._replace(params={**state.params, **params}))

  with pytest.raises(Mistake, match=r'embed/tokens is float32\[16, 8\], .*\[32, 8\]'):
    saves.restore(wanted(embed={'tokens': jnp.zeros((32, 8))}))
  with pytest.raises(Mistake, match=r'embed/tokens is float32.*wanted bfloat16'):
    saves.restore(wanted(embed={'tokens': jnp.zeros((16, 8), jnp.bfloat16)}))
  with pytest.raises(Mistake, match='params/extra is not there'):
    saves.restore(wanted(extra=jnp.zeros(3)))
  with pytest.raises(Mistake, match='params/embed/tokens is not wanted'):
    saves.restore(wanted(embed={}))
  assert saves.steps() == [10]  # A config that does not fit harms no checkpoint.
  saves.close()


def test_the_latest_and_the_best_are_kept(tmp_path):
  best = {'metric': 'val/loss', 'mode': 'min', 'n': 1}
  saves = open_checkpoints(tmp_path, keep=2, keep_best=best)
  losses = {10: 3.0, 20: 1.0, 30: 2.0, 40: float('nan'), 50: 1.0}
  for n, loss in losses.items():
    saves.save(n, make_state(n), {}, {})
    saves.score(n, {'val/loss': loss, 'val/other': 0.0})
  saves.close()
  assert saves.steps() == [20, 40, 50]
  assert saves.best() == 20  # The first of equals.
  reader = open_checkpoints(tmp_path, read_only=True)
  assert reader.best() == 20
  assert reader.restore(abstract(make_state()), 'best').step == 20
  assert reader.restore(abstract(make_state()), 'latest').step == 50
  reader.close()
  flip(tmp_path / 'scores.json', random.Random(3))
  said = []
  reader = open_checkpoints(tmp_path, read_only=True, say=said.append)
  assert reader.best() is None
  assert 'scores.json is damaged' in said[0]
  reader.close()


def test_more_is_better_where_the_config_says_so(tmp_path):
  best = {'metric': 'acc', 'mode': 'max', 'n': 2}
  saves = open_checkpoints(tmp_path, keep=1, keep_best=best)
  for n, value in [(10, 0.1), (20, 0.9), (30, 0.5), (40, 0.2)]:
    saves.save(n, make_state(n), {}, {}, metrics={'acc': value})
  saves.close()
  assert saves.steps() == [20, 30, 40]
  assert open_checkpoints(tmp_path, read_only=True).best() == 20


@pytest.mark.parametrize(
  ('keep', 'best', 'word'),
  [
    (0, None, 'c.keep=0'),
    (2, {'mode': 'min'}, 'wants a metric'),
    (2, {'metric': 'x', 'mod': 'min'}, "did you mean 'mode'"),
    (2, {'metric': 'x', 'mode': 'least'}, 'min and max'),
    (2, {'metric': 'x', 'n': 0}, 'at least 1'),
  ],
)
def test_mistakes(tmp_path, keep, best, word):
  with pytest.raises(Mistake, match=word):
    open_checkpoints(tmp_path, keep=keep, keep_best=best)


def test_a_failed_write_is_raised_at_the_next_save(tmp_path, monkeypatch):
  saves = save_all(tmp_path, [10])

  def full(*args):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(manifest, 'write', full)
    assert saves.save(20, make_state(20), {}, {})
    with pytest.raises(Failure, match=r'checkpoint 20.*No space left.*intact: 10\.'):
      saves.save(30, make_state(30), {}, {})
  assert saves.steps() == [10]
  assert saves.save(20, make_state(20), {}, {})  # With room again, the number is free.
  saves.close()
  assert saves.steps() == [10, 20]


@contextlib.contextmanager
def small_disk(folder, size):
  folder.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)]
  if (
    not shutil.which('mount') or subprocess.run(command, capture_output=True).returncode
  ):
    pytest.skip('no right to mount a small disk')
  try:
    yield
  finally:
    subprocess.run(['umount', '-l', str(folder)], check=True)


def test_a_full_disk_is_one_line_and_leaves_the_older_ones(tmp_path):
  disk = tmp_path / 'disk'
  with small_disk(disk, '2m'):
    saves = save_all(disk / 'checkpoints', [10, 20])
    noise = np.random.default_rng(0).integers(0, 2**32, 1_000_000, dtype=np.uint32)
    saves.save(30, {'w': jnp.asarray(noise)}, {}, {})
    with pytest.raises(Failure) as caught:
      saves.close()
    line = str(caught.value)
    assert 'No space left on device' in line
    assert str(disk) in line
    assert '\n' not in line
    assert 'intact: 10, 20' in line
    again = open_checkpoints(disk / 'checkpoints')
    assert same(again.restore(abstract(make_state())).state, make_state(20))
    assert again.save(30, make_state(30), {}, {})  # What failed gave its room back.
    again.close()
    assert again.latest() == 30


def test_a_read_only_folder_is_one_line(tmp_path):
  disk = tmp_path / 'disk'
  with small_disk(disk, '2m'):
    saves = save_all(disk / 'checkpoints', [10, 20])
    subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
    with pytest.raises(Failure, match=r'checkpoint 30.*Read-only file system.*10, 20'):
      save_and_close(saves, 30)
    with pytest.raises(Failure, match=r'cannot make the folder.*Read-only'):
      open_checkpoints(disk / 'other')
    reader = open_checkpoints(disk / 'checkpoints', read_only=True)
    assert reader.restore(abstract(make_state())).step == 20
    reader.close()


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path):
  (tmp_path / 'run').write_text('')
  with pytest.raises(Failure, match=r'cannot make the folder .*run.*(?i:directory)'):
    open_checkpoints(tmp_path / 'run' / 'checkpoints')


def test_a_store_without_append_rename_and_lock():
  fakefs.clear()
  said = []
  saves = save_all('fake://bucket/run/checkpoints', [10, 20, 30], say=said.append)
  assert saves.steps() == [20, 30]
  got = saves.restore(abstract(make_state()))
  assert got.step == 30
  assert same(got.state, make_state(30))
  name = max(
    (n for n in fakefs.STORE if '/30/state/' in n), key=lambda n: len(fakefs.STORE[n])
  )
  fakefs.STORE[name] = fakefs.STORE[name][:-1] + b'?'
  assert saves.restore(abstract(make_state())).step == 20
  assert any('/damaged/30/' in n for n in fakefs.STORE)
  assert saves.save(30, make_state(31), {'rows': 31}, {})
  saves.close()
  assert saves.restore(abstract(make_state())).data == {'rows': 31}
  saves.close()
  fakefs.clear()


def test_an_upload_cut_short_does_not_count(monkeypatch):
  fakefs.clear()
  saves = save_all('fake://bucket/run/checkpoints', [10])
  put = files.copy

  def cut(source, target):
    if target.name == 'MANIFEST.json':
      raise OSError('the connection was lost')
    put(source, target)

  with monkeypatch.context() as patch:
    patch.setattr(files, 'copy', cut)
    saves.save(20, make_state(20), {}, {})
    with pytest.raises(Failure, match='connection was lost'):
      saves.close()
  again = open_checkpoints('fake://bucket/run/checkpoints', say=lambda line: None)
  assert again.steps() == [10]
  assert again.save(20, make_state(20), {}, {})
  again.close()
  assert again.steps() == [10, 20]
  fakefs.clear()


WRITER = """
import os, sys
os.environ['JAX_PLATFORMS'] = 'cpu'
import jax, numpy as np
from gptjax.checkpoint import open_checkpoints
saves = open_checkpoints(sys.argv[1], keep=2)
shape = jax.ShapeDtypeStruct((200_000,), np.float32)
got = saves.restore({'w': shape})
start = got.step + 1 if got else 1
for n in range(start, 100_000):
  saves.save(n, {'w': jax.numpy.full(200_000, n, np.float32)}, {'rows': n}, {})
  if n == start + 1:  # The first one is there.
    print('from', start, flush=True)
"""


def kill_while_writing(folder, wait: float) -> int:
  """Runs the writer, kills it, and returns the step that it went on from."""
  command = [sys.executable, '-c', textwrap.dedent(WRITER), str(folder)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
    line = writer.stdout.readline()
    time.sleep(wait)
    writer.send_signal(signal.SIGKILL)
  assert line.startswith('from '), line
  return int(line.split()[1])


def check_kills(folder, kills: int) -> None:
  rng = random.Random(2)
  last = 0
  for _ in range(kills):
    start = kill_while_writing(folder, rng.uniform(0, 0.3))
    assert start == last + 1  # From the newest that was whole.
    saves = open_checkpoints(folder, read_only=True, say=lambda line: None)
    newest = saves.latest()
    got = saves.restore({'w': jax.ShapeDtypeStruct((200_000,), jnp.float32)})
    assert got.step == newest  # What counts is whole.
    assert got.data == {'rows': got.step}
    np.testing.assert_array_equal(got.state['w'], np.full(200_000, got.step))
    saves.close()
    assert got.step >= start
    last = got.step


def test_a_kill_leaves_whole_steps(tmp_path):
  check_kills(tmp_path, 1)


@pytest.mark.slow
def test_ten_kills_leave_whole_steps(tmp_path):
  check_kills(tmp_path, 10)


RANK = """
import os, sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
port, rank, folder = sys.argv[1:]
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_num_cpu_devices', 2)
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(f'localhost:{port}', 2, int(rank))
from gptjax.checkpoint import open_checkpoints
from gptjax.folder import open_folder
from gptjax.metrics import open_log
mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
cut = NamedSharding(mesh, PartitionSpec('data'))
run = open_folder(folder, {'seed': 0})
log = open_log(run.path)
saves = open_checkpoints(run.path / 'checkpoints', keep=2)
shape = jax.ShapeDtypeStruct((4096,), np.float32, sharding=cut)
fill = jax.jit(lambda n: jax.numpy.full(4096, n, np.float32), out_shardings=cut)
for n in (1, 2, 3):
  log.write(n, 'train', {'loss': 1 / n})
  saves.save(n, {'w': fill(n)}, {'rows': n}, log.offsets())
  saves.wait()
saves.close()
assert log.history('train/loss') == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
jax.experimental.multihost_utils.sync_global_devices('saved')
if rank == '0':
  place = run.path / 'checkpoints' / '3' / 'state'
  name = max((p for p in place.glob('*/d/*')), key=lambda p: p.stat().length)
  data = bytearray(name.read_bytes())
  data[-9] ^= 1
  name.write_bytes(bytes(data))
jax.experimental.multihost_utils.sync_global_devices('flipped')
saves = open_checkpoints(run.path / 'checkpoints', keep=2)
got = saves.restore({'w': shape})
assert got.step == 2, got.step
assert got.data == {'rows': 2}
for shard in got.state['w'].addressable_shards:
  assert np.all(np.asarray(shard.data) == 2)
again = open_log(run.path, got.offsets, step=2)
assert again.history('train/loss') == [(1, 1.0), (2, 0.5)]
assert not saves.save(2, {'w': fill(2)}, {}, {})
assert saves.save(3, {'w': fill(3)}, {'rows': 3}, again.offsets())
saves.close()
assert saves.steps() == [2, 3]
again.close()
run.close()
print('well', rank)
"""


@pytest.mark.slow
def test_two_processes_save_and_restore_together(tmp_path):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  ranks = [
    subprocess.Popen(
      [sys.executable, '-c', RANK, str(port), str(n), str(tmp_path / 'run')],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for n in range(2)
  ]
  try:
    said = [rank.communicate(timeout=150)[0] for rank in ranks]
  finally:
    for rank in ranks:
      rank.kill()
  for n, text in enumerate(said):
    assert f'well {n}' in text, text[-3000:]
  assert (tmp_path / 'run' / 'checkpoints' / 'damaged' / '3').is_dir()
  found = json.loads((tmp_path / 'run/checkpoints/3/MANIFEST.json').read_text())
  assert any('ocdbt.process_1' in name for name in found['files'])


def test_leaves_are_described(tmp_path):
  saves = save_all(tmp_path, [10])
  leaves = saves.leaves(10)
  assert leaves['params/layers/0:4:2/mlp/scale'] == ((4,), 'bfloat16')
  assert leaves['key'] == ((), 'key<fry>')
  assert set(leaves) == set(tree.paths(make_state()))
  saves.close()
