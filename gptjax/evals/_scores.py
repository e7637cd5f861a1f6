"""From Scores to numbers, and how far they would be elsewhere on other data.

Source: Efron 1979, "Bootstrap methods" (the percentile interval); Koehn 2004,
"Statistical significance tests for machine translation evaluation", for corpus scores.
"""

import collections
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from gptjax.words import Evaluator, Example, Mistake, Params, Scores, Task


def numbers(scores: Scores) -> dict[str, float]:
  """The scores of the data as they are."""
  once = np.ones(scores.units)
  return {name: float(score(once)) for name, score in scores.numbers.items()}


def intervals(
  scores: Scores, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
  """Between which numbers a share `level` of resampled data sets lie, by name.

  Data sets of as many units are drawn from the units with replacement, the same ones
  for all names. A score that some of them do not have (0 / 0) is judged by the others.
  """
  draw = np.random.default_rng(seed)
  found: dict[str, list[float]] = {name: [] for name in scores.numbers}
  for _ in range(samples):
    chosen = draw.integers(scores.units, size=scores.units)
    counts = np.bincount(chosen, minlength=scores.units).astype(np.float64)
    for name, score in scores.numbers.items():
      found[name].append(score(counts))
  ends = ((1 - level) / 2, (1 + level) / 2)
  return {name: _between(np.array(values), ends) for name, values in found.items()}


def _between(values: np.ndarray, ends: tuple[float, float]) -> tuple[float, float]:
  values = values[np.isfinite(values)]
  if not len(values):
    return math.nan, math.nan
  low, high = np.quantile(values, ends)
  return float(low), float(high)


def mean(values: Any) -> Callable[[np.ndarray], float]:
  """The mean of a number of each unit, as a function of their counts."""
  values = np.asarray(values, np.float64)
  return lambda counts: float(counts @ values / counts.sum())


def evaluator(
  look: Callable[[Params], Scores], every: int, names: tuple[str, ...] = ()
) -> Evaluator:
  """The Evaluator of a function from weights to Scores."""
  return Evaluator(lambda weights: numbers(look(weights)), every, names, look)


def behind(
  run: Callable[[Params, Any], Any], weights: Params, batches: Iterable[Any]
) -> Iterator[Any]:
  """What a jitted function gives of each batch, in NumPy.

  It is read two batches behind: the device never waits, and memory does not fill.
  """
  ahead: collections.deque[Any] = collections.deque()
  for batch in batches:
    ahead.append(run(weights, batch))
    if len(ahead) > 2:
      yield jax.device_get(ahead.popleft())
  while ahead:
    yield jax.device_get(ahead.popleft())


def first(task: Task, limit: int | None) -> Task:
  """The first examples of a task; None: all.

  Raises:
    Mistake: a limit below 1.
  """
  if limit is None:
    return task
  if limit < 1:
    raise Mistake(f'limit={limit}: allowed is at least 1 example.')
  return _First(task, limit)


class _First:
  """A task of which the first examples are there; all else is as it was."""

  def __init__(self, task: Task, limit: int):
    self._task, self._limit = task, limit

  def __len__(self) -> int:
    return min(self._limit, len(self._task))

  def __getattr__(self, name: str) -> Any:
    return getattr(self._task, name)

  def example(self, index: int) -> Example:
    """Of the whole task."""
    return self._task.example(index)

  @property
  def digest(self) -> str:
    """Another than the whole task's."""
    return f'{self._task.digest}/{self._limit}'
