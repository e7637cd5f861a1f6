"""Proofs that take minutes: run before a feature is called done.

    python -m tests.proofs              # what there is
    python -m tests.proofs kills        # runs one and renews its line in docs/proofs.md

A proof returns what it found in a few words, or raises AssertionError.
"""

import argparse
import collections
import datetime
import itertools
import pathlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

from gptjax import checkpoint, sharding, step, tree
from tests import crash, fakefs, test_step, tiny

PAGE = pathlib.Path(__file__).resolve().parents[1] / 'docs' / 'proofs.md'
SIZES = [
  mesh
  for count in (1, 2, 4, 8)
  for mesh in itertools.product((1, 2, 4, 8), repeat=3)
  if np.prod(mesh) == count
]


def say(line: str) -> None:
  print(f'{datetime.datetime.now():%H:%M:%S} {line}', flush=True)


# Kills.


def kills(folder: pathlib.Path, draw: random.Random) -> str:
  """20 runs, each killed (SIGKILL) up to 4 times at moments of every kind."""
  corpus = tiny.write_corpus(folder)
  begin = time.monotonic()
  assert crash.finish(corpus, folder / 'unbroken') == 0
  seconds = time.monotonic() - begin
  truth = crash.outcome(folder / 'unbroken')
  found: collections.Counter[str] = collections.Counter()
  for n in range(20):
    run = folder / f'run{n}'
    for moment in draw.choices(list(MOMENTS), k=draw.randint(1, 4)):
      process = crash.start(corpus, run)
      MOMENTS[moment](run, process, draw, seconds)
      if crash.stop(process, signal.SIGKILL) == -signal.SIGKILL:
        found[phase(run)] += 1
    code = crash.finish(corpus, run)
    assert code == 0, f'run {n} ended with {code}: see {run}.out'
    outcome = crash.outcome(run)
    differ = [name for name in truth if outcome.get(name) != truth[name]]
    assert outcome.keys() == truth.keys(), (n, outcome.keys())
    assert not differ, f'run {n}: {differ} differ from the unbroken run'
    say(f'run {n}: equal after kills so far: {dict(found)}')
  phases = ', '.join(f'{count} {name}' for name, count in found.most_common())
  return (
    f'20 runs equal the unbroken one to the bit after {found.total()} kills: {phases}'
  )


def phase(run: pathlib.Path) -> str:
  """What a run was at when it was killed, as its folder tells."""
  steps = [p for p in run.glob('checkpoints/[0-9]*') if p.is_dir()]
  whole = [p for p in steps if (p / 'MANIFEST.json').exists()]
  if len(whole) < len(steps):
    return 'within a save'
  if whole:
    return 'between saves'
  if (run / 'tokenizer').exists():
    shards = [p for p in run.glob('shards/*') if not (p / 'index.json').exists()]
    return 'within tokenizing' if shards else 'before the first save'
  return 'before the tokenizer'


def wait(process, condition: Callable[[], object]) -> None:
  """Until the condition holds, or the process has ended."""
  end = time.monotonic() + 120
  while process.poll() is None and time.monotonic() < end and not condition():
    time.sleep(0.001)


def at_a_time(run, process, draw, seconds):
  end = time.monotonic() + draw.uniform(0, seconds)
  wait(process, lambda: time.monotonic() > end)


def at_a_step(run, process, draw, seconds):
  crash.wait_for_step(run, draw.randrange(2, 25, 2), process)
  time.sleep(draw.uniform(0, 0.05))


def in_a_save(run, process, draw, seconds):
  before = {p.name for p in run.glob('checkpoints/[0-9]*')}
  wait(process, lambda: {p.name for p in run.glob('checkpoints/[0-9]*')} - before)
  time.sleep(draw.uniform(0, 0.03))


def in_tokenizing(run, process, draw, seconds):
  wait(process, lambda: any(run.glob('shards/*')) or any(run.glob('checkpoints/*')))
  time.sleep(draw.uniform(0, 0.01))


MOMENTS = {
  'time': at_a_time,
  'step': at_a_step,
  'save': in_a_save,
  'tokenizing': in_tokenizing,
}


# Meshes.


def meshes(folder: pathlib.Path, draw: random.Random) -> str:
  """Every mesh equals one device after 5 steps and restores the saves of all others."""
  model = test_step.make_model('transformer')
  optimizer = test_step.optimizer(axes=model.axes)
  expected, _, reference = test_step.alone('adamw', 'transformer')
  loss = params = 0.0
  digests = {}
  for mesh in SIZES:
    losses, _, state = test_step.train(mesh, model=model)
    loss = max(loss, float(np.abs(np.subtract(losses, expected)).max()))
    for path, leaf in tree.paths(state.params).items():
      apart = np.abs(leaf - tree.paths(reference.params)[path]).max()
      params = max(params, float(apart))
    say(f'{mesh}: loss within {loss:.1e}, parameters within {params:.1e} so far')
    assert loss <= 1e-5
    assert params <= 5e-5
    state = state._replace(key=jax.random.wrap_key_data(state.key))
    digests[mesh] = tree.digest(state)
    with on(mesh):
      layout = step.abstract_state(model, optimizer)
      laid = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), state, layout)
      saves = checkpoint.open_checkpoints(place(folder, mesh))
      saves.save(5, laid, {}, {})
      saves.close()
  for mesh, other in itertools.product(SIZES, SIZES):
    with on(other):
      saves = checkpoint.open_checkpoints(place(folder, mesh), read_only=True)
      found = saves.restore(step.abstract_state(model, optimizer))
      saves.close()
    assert found is not None
    assert tree.digest(found.state) == digests[mesh], (mesh, other)
  return (
    f'{len(SIZES)} meshes of 1, 2, 4 and 8 devices equal one device after 5 steps: '
    f'loss within {loss:.1e}, parameters within {params:.1e}; the save of each '
    f'restored on each to the bit ({len(SIZES) ** 2} pairs)'
  )


def on(mesh):
  devices = jax.devices()[: int(np.prod(mesh))]
  axes = dict(zip(('data', 'fsdp', 'tensor'), mesh, strict=True))
  return sharding.use(sharding.make_mesh(axes, devices))


def place(folder, mesh):
  return folder / 'x'.join(map(str, mesh))


# A remote store.


def store(folder: pathlib.Path, draw: random.Random) -> str:
  """A run gone on with from what a remote store held at 30 moments."""
  from etils import epath

  from gptjax import train
  from tests.test_whole import Recording

  config = tiny.get_config(f'text={tiny.write_corpus(folder)}')
  quiet = dict(say=lambda line: None)
  train.train(config, str(folder / 'unbroken'), **quiet)
  truth = crash.outcome(folder / 'unbroken')
  fakefs.STORE = recording = Recording()
  train.train(config, 'fake://bucket/run', **quiet)
  for moment in sorted(draw.sample(range(recording.changes), 30)):
    fakefs.STORE = recording.after(moment)
    train.train(config, 'fake://bucket/run', **quiet)
    assert crash.outcome(epath.Path('fake://bucket/run')) == truth, moment
    say(f'equal from change {moment} of {recording.changes}')
  return (
    f'30 of the {recording.changes} states that a run leaves in a store without append '
    'or rename: the run gone on with equals the unbroken local one to the bit'
  )


PROOFS = {'kills': kills, 'meshes': meshes, 'store': store}


def record(name: str, found: str, command: str) -> None:
  """Puts a proof's line into docs/proofs.md, in place of its last."""
  row = f'| {name} | {found} | {datetime.date.today()} | `{command}` |'
  lines = PAGE.read_text().splitlines()
  old = [i for i, line in enumerate(lines) if line.startswith(f'| {name} |')]
  if old:
    lines[old[0]] = row
  else:
    lines.append(row)
  PAGE.write_text('\n'.join(lines) + '\n')


def main() -> None:
  parser = argparse.ArgumentParser(prog='python -m tests.proofs', description=__doc__)
  parser.add_argument('name', nargs='?', choices=PROOFS, help='which to run')
  parser.add_argument('--seed', type=int, default=0, help='of what is drawn')
  args = parser.parse_args()
  if args.name is None:
    for name, proof in PROOFS.items():
      print(f'{name:10} {proof.__doc__}')
    return
  jax.config.update('jax_num_cpu_devices', 8)
  folder = pathlib.Path(tempfile.mkdtemp(prefix=f'proof-{args.name}-'))
  begin = time.monotonic()
  try:
    found = PROOFS[args.name](folder, random.Random(args.seed))
  except AssertionError as error:
    sys.exit(f'{args.name} FAILED in {folder}: {error}')
  minutes = (time.monotonic() - begin) / 60
  record(args.name, f'{found}; {minutes:.0f} minutes', ' '.join(COMMAND + sys.argv[1:]))
  say(found)


COMMAND = ['python', '-m', 'tests.proofs']

if __name__ == '__main__':
  main()
