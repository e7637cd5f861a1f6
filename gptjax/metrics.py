"""Numbers of a run, written down: JSON lines, TensorBoard, samples, a tracker.

`metrics.jsonl` holds only what follows from config, data and seed, one flat object a
line: {"step": 200, "train/loss": 2.31}. `timings.jsonl` holds seconds, tokens/s, waits
and memory. Both, and `samples.md`, are cut at a checkpoint's offsets when it is
restored, so that they end as those of an unbroken run.

A number of float32 is written with the fewest digits that give the same float32 back, a
Python float with the fewest for float64, and a non-finite one as "nan", "inf", "-inf".

A remote folder cannot be appended to: the files are written in a local one and uploaded
whole at each save. Processes but the first write into a local folder only, so that all
of them see the same history.
"""

import importlib
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from gptjax import files
from gptjax.lookup import nearest
from gptjax.words import Max, Mistake, Sum

METRICS, TIMINGS, SAMPLES = 'metrics.jsonl', 'timings.jsonl', 'samples.md'
_TRACKERS = ('trackio', 'wandb')


def number(value: Any) -> int | float:
  """A metric as one number: total / count, the maximum, or what a scalar holds.

  Nothing over nothing is nan: no token of the kind was seen.
  """
  if isinstance(value, Sum):
    total, count = np.float64(value.total), np.float64(value.count)
    with np.errstate(all='ignore'):
      return number(np.float32(total / count))
  if isinstance(value, Max):
    value = value.value
  if isinstance(value, int | float) and not isinstance(value, np.generic):
    return int(value) if isinstance(value, int) else value
  value = np.asarray(value)
  if value.size != 1:
    raise ValueError(f'a metric is one number, not an array {list(value.shape)}')
  if value.dtype.kind in 'iub':
    return int(value.item())
  if value.dtype == np.float64:
    return float(value.item())
  return float(str(np.float32(value.item())))  # Its fewest digits.


def line(step: int, numbers: Mapping[str, int | float]) -> str:
  """One object of metrics.jsonl."""
  shown = {k: v if math.isfinite(v) else str(v) for k, v in numbers.items()}
  return json.dumps({'step': step, **shown}, allow_nan=False) + '\n'


def read_lines(path: epath.PathLike) -> Iterator[dict[str, Any]]:
  """The objects of a metrics.jsonl or timings.jsonl, non-finite numbers as floats.

  A last line cut by a kill is left out.
  """
  path = epath.Path(path)
  for text in path.read_text().splitlines(keepends=True) if path.exists() else ():
    if text.endswith('\n'):
      yield {k: float(v) if isinstance(v, str) else v for k, v in _load(path, text)}


def _load(path: epath.Path, text: str) -> Any:
  try:
    return json.loads(text).items()
  except (ValueError, AttributeError):
    raise Mistake(f'{path} has a line that is no JSON object: {text[:60]!r}') from None


def open_log(
  folder: epath.PathLike,
  offsets: Mapping[str, int] | None = None,
  *,
  step: int = 0,
  tensorboard: bool = True,
  track: str | None = None,
  config: Mapping[str, Any] | None = None,
  say: Callable[[str], None] = files.say,
) -> 'Log':
  """The log of a run, cut at the offsets of the checkpoint it goes on from.

  Without offsets nothing was saved: the run, and its files, begin again. `step` is that
  of the checkpoint. `track` is 'wandb' or 'trackio' (extra: track), which gets the
  config too.

  Raises:
    Mistake: an unknown tracker, or one that is not installed.
    Failure: the files cannot be written.
  """
  folder = epath.Path(folder)
  with files.reporting(f'cannot write the log in {folder}'):
    log = Log(folder, offsets or {}, step, tensorboard, say)
    if track:
      log.tracker = _open_tracker(track, folder, config or {})
  return log


class Log:
  """Where a run's numbers go; see open_log."""

  def __init__(
    self,
    folder: epath.Path,
    offsets: Mapping[str, int],
    step: int,
    tensorboard: bool,
    say: Callable[[str], None],
  ):
    self.folder = folder
    self.tracker: Any = None
    self._main = jax.process_index() == 0
    self._direct = self._main and files.is_local(folder)
    self._local = epath.Path(
      folder if self._direct else tempfile.mkdtemp(prefix='gptjax-log-')
    )
    self._files = {
      name: self._open(name, offsets.get(name, 0), say)
      for name in (METRICS, TIMINGS, SAMPLES)
    }
    self._tensorboard = tensorboard and self._main
    self._board: Any = None  # Made at the first number: the import takes its time.
    self._step = step
    self._pending: tuple[int, str, Mapping[str, Any]] | None = None

  def _open(
    self, name: str, offset: int, say: Callable[[str], None]
  ) -> io.BufferedWriter:
    path = self._local / name
    if not self._direct and offset:
      there = self.folder / name
      path.write_bytes(there.read_bytes()[:offset] if there.exists() else b'')
    file = open(path, 'ab')  # noqa: SIM115 (closed in close)
    size = os.path.getsize(path)
    if size < offset:
      say(f'{self.folder / name} lacks {offset - size} bytes that the checkpoint knew.')
      offset = (
        path.read_bytes().rfind(b'\n') + 1
      )  # A line cut short would spoil the next.
    file.truncate(offset)
    file.seek(0, os.SEEK_END)
    return file

  def later(
    self, step: int, metrics: Mapping[str, Any], prefix: str = 'train'
  ) -> tuple[int, dict[str, int | float]] | None:
    """Holds device values back until the next call, when they are there.

    So the host never waits for the step it has just begun. What was held before is
    written, and returned as (step, numbers by full name).
    """
    for leaf in jax.tree.leaves(dict(metrics)):
      if isinstance(leaf, jax.Array):
        leaf.copy_to_host_async()
    written = self.flush()
    self._pending = (step, prefix, metrics)
    return written

  def flush(self) -> tuple[int, dict[str, int | float]] | None:
    """Writes what `later` holds, and returns it."""
    if self._pending is None:
      return None
    step, prefix, metrics = self._pending
    self._pending = None
    return step, self.write(step, prefix, metrics)

  def write(
    self, step: int, prefix: str, numbers: Mapping[str, Any]
  ) -> dict[str, int | float]:
    """A line of metrics.jsonl with names 'prefix/name'; what is held goes first."""
    self.flush()
    named = {f'{prefix}/{name}': number(value) for name, value in numbers.items()}
    self._append(METRICS, line(int(step), named))
    self._show(int(step), named)
    return named

  def time(self, step: int, numbers: Mapping[str, Any]) -> None:
    """A line of timings.jsonl: seconds, tokens/s, waits, bytes."""
    named = {name: number(value) for name, value in numbers.items()}
    self._append(TIMINGS, line(int(step), named))
    self._show(int(step), {f'timings/{name}': value for name, value in named.items()})

  def sample(self, text: str) -> None:
    """Appends Markdown to samples.md."""
    self._append(SAMPLES, text if text.endswith('\n') else text + '\n')

  def history(self, name: str) -> list[tuple[int, float]]:
    """(step, value) of all lines of metrics.jsonl that hold a name ('val/nats')."""
    self.flush()
    lines = read_lines(self._local / METRICS)
    return [(found['step'], found[name]) for found in lines if name in found]

  def offsets(self) -> dict[str, int]:
    """Bytes of each file, all numbers written and, if remote, uploaded: for a save.

    Raises:
      Failure: they cannot be written.
    """
    self.flush()
    with files.reporting(f'cannot write the log in {self.folder}'):
      for file in self._files.values():
        os.fsync(file.fileno())
      self._upload()
    return {name: file.tell() for name, file in self._files.items()}

  def close(self) -> None:
    """Writes what is held, uploads, and closes all files."""
    self.flush()
    if self._board:
      self._board.close()
    with files.reporting(f'cannot write the log in {self.folder}'):
      for file in self._files.values():
        file.close()
      self._upload()
    if self.tracker:
      self.tracker.finish()
    if not self._direct:
      self._local.rmtree()

  def _append(self, name: str, text: str) -> None:
    with files.reporting(f'cannot write {self.folder / name}'):
      self._files[name].write(text.encode())
      self._files[name].flush()

  def _show(self, step: int, named: Mapping[str, int | float]) -> None:
    if self.tracker:
      self.tracker.log(dict(named), step=step)
    if not self._tensorboard:
      return
    if self._board is None:
      # Purging hides what a killed run wrote after the checkpoint.
      purge = self._step + 1 if self._step else None
      place = os.fspath(self._local / 'tb')
      self._board = _tensorboard().SummaryWriter(place, purge_step=purge)
    for name, value in named.items():
      self._board.add_scalar(name, value, step)

  def _upload(self) -> None:
    if self._main and not self._direct:
      if self._board:
        self._board.flush()
      files.copy_tree(self._local, self.folder)


def _tensorboard() -> Any:
  """tensorboardX, without torch: for what is logged here that is 2 s of start."""
  modules: dict[str, Any] = sys.modules
  hide = 'torch' not in modules
  if hide:
    modules['torch'] = None  # An import of it fails, as where it is not installed.
  try:
    import tensorboardX
  finally:
    if hide:
      del modules['torch']
  return tensorboardX


def _open_tracker(track: str, folder: epath.Path, config: Mapping[str, Any]) -> Any:
  if track not in _TRACKERS:
    raise Mistake(f'c.track={track!r}: {nearest(track, _TRACKERS)}')
  if jax.process_index() != 0:
    return None
  try:
    module = importlib.import_module(track)
  except ImportError:
    raise Mistake(
      f"c.track={track!r} wants the package {track}: pip install 'gptjax[track]'."
    ) from None
  known = {'id': folder.name} if track == 'wandb' else {}
  module.init(
    project='gptjax', name=folder.name, config=dict(config), resume='allow', **known
  )
  return module
