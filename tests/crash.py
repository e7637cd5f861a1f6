"""Runs of tests.tiny in processes of their own, killed at will."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax

from gptjax import checkpoint, tree

ROOT = pathlib.Path(__file__).resolve().parents[1]


def start(corpus: str, folder: pathlib.Path, *more: str) -> subprocess.Popen:
  """The command, begun; its output goes to FOLDER.out."""
  command = [sys.executable, '-m', 'gptjax.main', f'--workdir={folder}', *more]
  command.append(f'--config={ROOT}/tests/tiny.py:text={corpus}')
  with open(f'{folder}.out', 'a') as out:
    return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env=_env())


def _env() -> dict[str, str]:
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '1'}


def finish(corpus: str, folder: pathlib.Path, *more: str) -> int:
  """The command, run to its end; its exit code."""
  return start(corpus, folder, *more).wait(timeout=240)


def stop(process: subprocess.Popen, kind: signal.Signals) -> int:
  """Sends a signal; the exit code."""
  process.send_signal(kind)
  return process.wait(timeout=120)


def wait_for_step(folder: pathlib.Path, step: int, process: subprocess.Popen) -> None:
  """Until metrics.jsonl speaks of the step, or the process has ended."""
  file = folder / 'metrics.jsonl'
  end = time.monotonic() + 120
  while process.poll() is None and time.monotonic() < end:
    if file.exists() and f'"step": {step},' in file.read_text():
      return
    time.sleep(0.01)


def outcome(folder: pathlib.Path) -> dict[str, str]:
  """All that has to be equal to the bit: the logs, and the state of each checkpoint."""
  found = {
    name: (folder / name).read_text() for name in ('metrics.jsonl', 'samples.md')
  }
  saves = checkpoint.open_checkpoints(folder / 'checkpoints', read_only=True)
  for step in saves.steps():
    arrays = {
      path: jax.ShapeDtypeStruct(shape, dtype)
      for path, (shape, dtype) in saves.leaves(step).items()
      if not dtype.startswith('key')  # The run's key never changes.
    }
    found[f'state {step}'] = tree.digest(saves.read(arrays, step))
  saves.close()
  return found
