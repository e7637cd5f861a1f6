"""The folder of a run's steps: which count, which are the best, which are kept.

A step counts with its manifest and is whole if its files satisfy it. Nothing here knows
what a step holds. One process writes; readers change nothing.
"""

import contextlib
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from gptjax import files, manifest
from gptjax.lookup import nearest
from gptjax.words import Mistake

_SCORES = 'scores.json'


class Best(NamedTuple):
  """What `keep_best` says."""

  metric: str
  mode: str = 'min'
  n: int = 1


def make_best(keep_best: Mapping[str, Any]) -> Best:
  """Checks `dict(metric='val/bits_per_byte', mode='min', n=1)`.

  Raises:
    Mistake: an unknown key or value.
  """
  given = {k: v for k, v in keep_best.items() if v is not None}
  for key in given:
    if key not in Best._fields:
      raise Mistake(f'c.keep_best takes no {key!r}: {nearest(key, Best._fields)}')
  if 'metric' not in given:
    raise Mistake("c.keep_best wants a metric, such as 'val/bits_per_byte'.")
  if given.get('mode', 'min') not in ('min', 'max'):
    raise Mistake(f'c.keep_best.mode={given["mode"]!r}: allowed are min and max.')
  if given.get('n', 1) < 1:
    raise Mistake(f'c.keep_best.n={given["n"]}: at least 1.')
  return Best(**given)


class Steps:
  """The steps in a folder, as one writer or a reader sees them."""

  def __init__(
    self,
    folder: epath.Path,
    best: Best | None,
    read_only: bool,
    say: Callable[[str], None],
  ):
    self.folder, self.read_only = folder, read_only
    self._best, self._say = best, say
    self._main = jax.process_index() == 0
    self._scores = self._read_scores()

  def place(self, step: int) -> epath.Path:
    """The folder of a step."""
    return self.folder / str(step)

  def there(self) -> list[int]:
    """All steps that have a folder, finished or not, in order."""
    if not self.folder.exists():
      return []
    return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdecimal())

  def done(self) -> list[int]:
    """The steps that count, in order."""
    return [n for n in self.there() if (self.place(n) / manifest.NAME).exists()]

  # Scores.

  def ranked(self, steps: list[int]) -> list[int]:
    """Those of the steps that have a score, the best first; of equals the first."""
    sign = -1 if self._best and self._best.mode == 'max' else 1
    scores = self._scores  # Replaced as a whole, so other threads see one or the other.
    real = [n for n in steps if not math.isnan(scores.get(n, math.nan))]
    return sorted(real, key=lambda n: (sign * scores[n], n))

  def score(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes down the score of a step, if it is among the metrics."""
    value = metrics.get(self._best.metric) if self._best else None
    if value is None:
      return
    known = {*self.there(), step}
    scores = {**self._scores, step: float(value)}
    self._scores = {n: v for n, v in sorted(scores.items()) if n in known}
    if self._main:
      named = {str(n): v for n, v in self._scores.items()}
      mode = self._best.mode if self._best else 'min'
      with files.reporting(f'cannot write {self.folder / _SCORES}'):
        text = manifest.sealed({'mode': mode, 'scores': named})
        files.write(self.folder / _SCORES, text)

  def _read_scores(self) -> dict[int, float]:
    if not (self.folder / _SCORES).exists():
      return {}
    try:
      read = manifest.unsealed(self.folder / _SCORES)
    except manifest.Damaged:
      self._say(f'{self.folder / _SCORES} is damaged: the best step is not known.')
      return {}
    if self._best is None:  # A reader, who does not know the config.
      self._best = Best('', read['mode'])
    return {int(n): v for n, v in read['scores'].items()}

  # Keeping.

  def prune(self, keep: int | None) -> None:
    """Removes all steps but the latest `keep` (None: all) and the best."""
    steps = self.done()
    if keep is None:
      return
    best = self.ranked(steps)[: self._best.n] if self._best else []
    for step in steps[:-keep]:
      if step not in best:
        (self.place(step) / manifest.NAME).unlink()  # First: half a step never counts.
        self.place(step).rmtree()

  def set_aside_unfinished(self) -> None:
    """Moves steps without a manifest to damaged/: a kill came while one was written."""
    for step in sorted({*self.there()} - {*self.done()}):
      self.set_aside(step, 'was never finished (it has no manifest)')

  def set_aside(self, step: int, why: str) -> None:
    """Moves a step to damaged/ and says so; a reader passes it over."""
    if not self._main:
      return
    place = self.place(step)
    if self.read_only:
      self._say(f'Checkpoint {place} {why}: passed over.')
      return
    target = self.folder / 'damaged' / str(step)
    target = files.free_name(target) if target.exists() else target
    with files.reporting(f'cannot move {place} aside'):
      files.move(place, target)
    self._say(f'Checkpoint {place} {why}: moved to {target}.')

  # Choosing and checking.

  def candidate(self, step: int | str | None, damaged: set[int]) -> int | None:
    """The step that 'latest' (None), 'best' or a number means, but for damaged ones.

    Raises:
      Mistake: there is no step of that number.
    """
    steps = [n for n in self.done() if n not in damaged]
    if step is None or step == 'latest':
      return max(steps, default=None)
    if step == 'best':
      return next(iter(self.ranked(steps)), max(steps, default=None))
    if step not in steps:
      there = ', '.join(map(str, steps)) or 'none'
      raise Mistake(f'{self.folder} has no step {step}. Steps: {there}.')
    return int(step)

  def checked(
    self, step: int, stack: contextlib.ExitStack
  ) -> tuple[epath.Path, dict[str, Any]]:
    """The step's files, downloaded if need be, and the manifest that they satisfy.

    Raises:
      Damaged: they do not.
    """
    place = self.place(step)
    found, error = {}, None
    try:
      if staged(place):
        local = tempfile.TemporaryDirectory(prefix='gptjax-checkpoint-')
        target = epath.Path(stack.enter_context(local))
        files.copy_tree(place, target)
        place = target
      found = manifest.read(place)
      if self._main:
        manifest.check(place, found)
    except manifest.Damaged as damage:
      error = damage
    except FileNotFoundError:  # The writer dropped it meanwhile.
      error = manifest.Damaged('it is gone')
    if anywhere(error is not None):
      raise error or manifest.Damaged('as another process found')
    return place, found


def staged(folder: epath.Path) -> bool:
  """Whether steps go through a temporary local folder to a remote store."""
  return not files.is_local(folder) and jax.process_count() == 1


def upload(work: epath.Path, place: epath.Path) -> None:
  """Moves a step written locally to its remote place, the manifest last."""
  for name, path in files.under(work).items():
    if name != manifest.NAME:
      files.copy(path, place / name)
  files.copy(work / manifest.NAME, place / manifest.NAME)
  shutil.rmtree(work, ignore_errors=True)


def together(name: str) -> None:
  """All processes wait here for each other."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def anywhere(flag: bool) -> bool:
  """Whether the flag is set on any process."""
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
