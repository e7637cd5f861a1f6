"""What a run says of itself at its start and its end, and how fast it is."""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from gptjax import files, progress, tree
from gptjax.words import Frozen, Model, Params

Say = Callable[[str], None]


def compile_cache(on: bool, say: Say = files.say) -> None:
  """Keeps compiled programs in the user's cache folder, unless another is set."""
  if on and not jax.config.values.get('jax_compilation_cache_dir'):
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    place = os.path.join(home, 'gptjax', 'jax')
    try:
      os.makedirs(place, exist_ok=True)
      tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
      say(f'{place} keeps no compiled programs: {error.strerror}.')
      return
    jax.config.update('jax_compilation_cache_dir', place)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


def show_start(
  c: Mapping[str, Any],
  model: Model,
  params: Params,
  frozen: Frozen,
  mesh: Any,
  say: Say,
) -> None:
  """Devices and mesh, the parameter table, tokens a step, FLOPs a token."""
  devices = jax.devices()
  axes = ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())
  say(f'{len(devices)} x {devices[0].device_kind} ({devices[0].platform}): {axes}')
  say(progress.parameter_table(params))
  for name, fixed in frozen.items():
    say(f'{tree.count(fixed):,} parameters of the {name} are not trained.')
  rows, length = c['batch_size'], c['mixture']['length']
  flops = passes(frozen) * model.flops((rows, length))
  tokens = rows * length
  line = f'{tokens:,} tokens a step, {flops / tokens:.3g} FLOPs a token'
  peak = progress.peak_flops()
  if peak:
    seconds = progress.duration(c['steps'] * flops / peak / 0.5)
    line += f'; {c["steps"]:,} steps take about {seconds} at half the peak'
  say(line + '.')


def show_result(
  c: Mapping[str, Any], folder: epath.Path, numbers: Mapping[str, float], say: Say
) -> None:
  """The last evaluation as a table, and what to type next."""
  width = max(map(len, numbers), default=0)
  for name, value in numbers.items():
    say(f'  {name:<{width}}  {value:.6g}')
  if 'lm' in c['model'].get('outputs', ('lm',)):
    chat = '--chat ' if c['samples'].get('chat') else ''
    say(f'python -m gptjax.generate --run={folder} {chat}--prompt="Hello"')
  elif c['evals']:
    say(f'python -m gptjax.evaluate --run={folder} --evals={next(iter(c["evals"]))}')
  say(f'{folder / "report.html"} shows its curves.')


def passes(frozen: Frozen) -> int:
  """Forward passes that a step costs; weights of a base have no gradient."""
  return 2 if 'base' in frozen else 3


class Speed:
  """Tokens a second and MFU, between lines of timings.jsonl."""

  def __init__(self, c: Mapping[str, Any], model: Model, frozen: Frozen):
    shape = (c['batch_size'], c['mixture']['length'])
    self._tokens = shape[0] * shape[1]
    self._flops = passes(frozen) * model.flops(shape)
    self._peak = progress.peak_flops()
    self._step: int | None = None
    self._waited = 0.0
    self._last: dict[str, float] = {}

  def lap(self, step: int, clock: Mapping[str, float], source: Any) -> dict[str, float]:
    """The line of timings.jsonl for the steps since the last."""
    since, self._step = self._step, step
    apart = sum(clock.get(f'{name}_seconds', 0.0) for name in ('save', 'evals'))
    seconds = max(clock['seconds'] - apart, 1e-9)
    found = dict(clock) | progress.memory() | {'time': time.time()}
    if since is not None:
      count = step - since
      found['tokens_per_s'] = count * self._tokens / seconds
      if self._peak:
        found['mfu'] = count * self._flops / seconds / self._peak
      self._last = found
    waited = getattr(source, 'waited', 0.0)
    found['waited_seconds'], self._waited = waited - self._waited, waited
    return found | (source.stats() if hasattr(source, 'stats') else {})

  def shown(
    self, step: int, numbers: Mapping[str, float]
  ) -> tuple[int, float | None, float | None, float | None]:
    """Arguments of Progress.update."""
    speed = self._last
    loss = numbers.get('train/loss')
    return step, loss, speed.get('tokens_per_s'), speed.get('mfu')
