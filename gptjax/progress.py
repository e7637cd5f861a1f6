"""What the user sees while a run goes on, and the speeds that it is told in.

Rates are tokens per second; MFU is the share of the devices' peak that the model's own
FLOPs make up (PaLM, arXiv 2204.02311, appendix B).
"""

import contextlib
import functools
import resource
import shutil
import sys
import time
from collections.abc import Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from gptjax.tree import count, paths
from gptjax.words import Tree

# Dense bfloat16 FLOP/s of one JAX device, by the beginning of its kind; float16 where
# the chip has no bfloat16. From the makers' data sheets. Longer names come first.
PEAKS = {
  'TPU v2': 22.5e12,  # A device is one of two cores.
  'TPU v3': 61.5e12,
  'TPU v4 lite': 138e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5p': 459e12,
  'TPU v5': 459e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  'NVIDIA B200': 2250e12,
  'NVIDIA H200': 989e12,
  'NVIDIA H100 PCIe': 756e12,
  'NVIDIA H100 NVL': 835e12,
  'NVIDIA H100': 989e12,
  'NVIDIA A100': 312e12,
  'NVIDIA A10G': 70e12,
  'NVIDIA A10': 125e12,
  'NVIDIA L40S': 362e12,
  'NVIDIA L4': 121e12,
  'NVIDIA GeForce RTX 4090': 165e12,
  'NVIDIA GeForce RTX 3090': 71e12,
  'Tesla V100': 125e12,
  'Tesla T4': 65e12,
}

NARROW = 60  # Columns of a terminal that has no room for more than the loss.


def peak_flops(devices: Sequence[Any] | None = None) -> float | None:
  """FLOP/s of all devices together; None if their kind is not known.

  A CPU's is measured, once a process: a float32 matrix product on the whole machine.
  """
  devices = jax.devices() if devices is None else devices
  if devices[0].platform == 'cpu':
    return _measured() * jax.process_count()
  kind = devices[0].device_kind
  for name, peak in PEAKS.items():
    if kind.startswith(name):
      return peak * len(devices)
  return None


@functools.cache
def _measured(size: int = 1024, runs: int = 5) -> float:
  x = jnp.ones((size, size), jnp.float32)
  product = jax.jit(jnp.matmul)
  product(x, x).block_until_ready()
  seconds = []
  for _ in range(runs):
    start = time.perf_counter()
    product(x, x).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 2 * size**3 / min(seconds)


def memory() -> dict[str, int]:
  """Peak bytes so far: of this process, and of its first device where it says so."""
  unit = 1 if sys.platform == 'darwin' else 1024
  found = {'host_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    found['device_bytes'] = stats['peak_bytes_in_use']
  return found


class Stopwatch:
  """Seconds by name, between laps."""

  def __init__(self):
    self._start = time.perf_counter()
    self._spent: dict[str, float] = {}

  @contextlib.contextmanager
  def over(self, name: str) -> Generator[None]:
    """Counts the block's seconds under a name ('data', 'save', 'evals')."""
    start = time.perf_counter()
    try:
      yield
    finally:
      spent = time.perf_counter() - start
      self._spent[name] = self._spent.get(name, 0.0) + spent

  def lap(self) -> dict[str, float]:
    """{'seconds': since the last lap, 'data_seconds': ...}; counts from 0 again."""
    now = time.perf_counter()
    found = {'seconds': now - self._start}
    found.update({f'{name}_seconds': spent for name, spent in self._spent.items()})
    self._start, self._spent = now, {}
    return found


class Progress:
  """A bar on a terminal, elsewhere a line now and then; `close` or `with` ends it.

  `steps` is the last step, `start` the step that the run goes on from, `every` the
  seconds between plain lines.
  """

  def __init__(
    self,
    steps: int,
    start: int = 0,
    *,
    console: Console | None = None,
    every: float = 10.0,
  ):
    self._steps, self._every = steps, every
    self._console = console or Console(stderr=True, highlight=False)
    self._first: tuple[float, int] | None = None
    self._told = -np.inf
    self._bar: Bar | None = None
    self._narrow = self._console.is_terminal and self._console.width < NARROW
    if self._console.is_terminal:
      self._bar = Bar(
        MofNCompleteColumn(),
        *([] if self._narrow else [BarColumn()]),
        TextColumn('{task.fields[numbers]}', markup=False),
        console=self._console,
        refresh_per_second=2,
      )
      self._task = self._bar.add_task('', total=steps, completed=start, numbers='')
      self._bar.start()

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def update(
    self,
    step: int,
    loss: float | None = None,
    tokens_per_s: float | None = None,
    mfu: float | None = None,
  ) -> None:
    """Shows how far it is: loss in nats per token, MFU as a fraction."""
    now = time.monotonic()
    self._first = self._first or (now, step)
    parts = [] if loss is None else [f'loss {loss:.4f}']
    if not self._narrow:
      parts += [] if tokens_per_s is None else [f'{tokens_per_s:,.0f} tokens/s']
      parts += [] if mfu is None else [f'MFU {100 * mfu:.1f} %']
    since, first = self._first
    if step > first and step < self._steps:
      left = (now - since) / (step - first) * (self._steps - step)
      parts.append(f'{duration(left)} left')
    text = '  '.join(parts)
    if self._bar:
      self._bar.update(self._task, completed=step, numbers=text)
    elif now - self._told >= self._every or step >= self._steps:
      self._told = now
      self.say(f'step {step}/{self._steps}  {text}')

  def say(self, text: str) -> None:
    """Prints lines, above the bar where there is one."""
    self._console.print(text, markup=False, highlight=False, soft_wrap=True)

  def close(self) -> None:
    """Leaves the terminal as it should be."""
    if self._bar:
      self._bar.stop()
      self._bar = None


def duration(seconds: float) -> str:
  """'0:42', '12:05', '3:07:00', '4 d 03:10'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours >= 24:
    return f'{hours // 24} d {hours % 24:02}:{minutes:02}'
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


def parameter_table(params: Tree) -> str:
  """A line for each leaf: name, shape, dtype, numbers, share; and the sum.

  On a terminal that is too narrow for it: name and numbers.
  """
  total = count(params)
  rows = [('parameters', 'shape', 'dtype', 'numbers', 'share')]
  for path, leaf in paths(params).items():
    shape, size = 'x'.join(map(str, leaf.shape)) or '1', int(np.prod(leaf.shape))
    share = f'{100 * size / max(total, 1):.1f} %'
    rows.append((path, shape, str(leaf.dtype), f'{size:,}', share))
  rows.append(('all', '', '', f'{total:,}', '100.0 %'))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  shown = range(5)
  if sum(widths) + 2 * 4 > shutil.get_terminal_size((NARROW * 2, 0)).columns:
    shown = (0, 3)
  return '\n'.join(
    '  '.join(
      row[i].ljust(widths[i]) if i < 3 else row[i].rjust(widths[i]) for i in shown
    )
    for row in rows
  )
