"""A weighted mixture of tasks as one endless stream with random access.

Item d of the stream is (task, epoch, index): a pure function of d, the seed, the
weights and the sizes, so that nothing is kept and every host reads the same stream.

  slots      a period of 65,536 items holds each task as often as its share says,
             spread evenly (the k-th of m items lies at (k + 1/2) / m of the period)
  epochs     item n of a task is item n mod size of its epoch n // size
  shuffle    each epoch has its own order: a Feistel cipher over a x b >= size boxes
             with cycle walking (Black and Rogaway 2002, "Ciphers with arbitrary
             finite domains"), O(1) an item and without a list of the items
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gptjax.words import Mistake

PERIOD = 65_536  # Items after which the order of the tasks repeats.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Mixture(NamedTuple):
  """K tasks in their shares; made by `make_mixture`, read by `draw`."""

  names: tuple[str, ...]  # [K]
  sizes: np.ndarray  # [K] items of an epoch
  slots: np.ndarray  # [PERIOD] task of each slot
  ranks: np.ndarray  # [PERIOD] how many earlier slots have the same task
  counts: np.ndarray  # [K] slots of each task
  keys: np.ndarray  # [K] uint64, of each task's shuffle


def make_mixture(
  sizes: Mapping[str, int], shares: Mapping[str, float], seed: int
) -> Mixture:
  """Tasks with `sizes` items an epoch, drawn in proportion to `shares` (of items).

  Raises:
    Mistake: a share that is not a finite number above 0, a task without items.
  """
  if not sizes:
    raise Mistake('c.mixture.tasks is empty: name at least one task.')
  for name in sizes:
    check_weight(name, shares[name])
    if sizes[name] < 1:
      raise Mistake(f'c.mixture.tasks.{name} has no documents.')
  share = np.array([shares[name] for name in sizes], np.float64)
  counts = _apportion(share / share.sum())
  slots = np.repeat(np.arange(len(counts)), counts)
  ranks = np.concatenate([np.arange(n) for n in counts])
  order = np.argsort((ranks + 0.5) / counts[slots], kind='stable')
  return Mixture(
    names=tuple(sizes),
    sizes=np.array(list(sizes.values()), np.int64),
    slots=slots[order],
    ranks=ranks[order],
    counts=counts,
    keys=np.array([make_key(seed, 'shuffle', name) for name in sizes], np.uint64),
  )


def check_weight(name: str, weight: Any) -> None:
  """Raises a Mistake where a task's weight is not a finite number above 0."""
  if not _is_positive(weight):
    raise Mistake(
      f'c.mixture.tasks.{name}.weight={weight!r}: a weight is a number above 0; '
      f'leave the task out to draw nothing from it.'
    )


def _is_positive(value: Any) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and math.isfinite(value) and value > 0


def make_weights(
  weights: Mapping[str, float | None],
  sizes: Mapping[str, int],
  epochs: Mapping[str, float] | None = None,
  temperature: float = 1.0,
) -> dict[str, float]:
  """The shares of tokens of tasks, as numbers that need not add up to 1.

  Without weights tasks are seen in proportion to their `sizes` (tokens), so that all
  have their epochs at the same time; one with epochs=2 twice as often. Share s becomes
  s ** (1 / temperature): above 1, small tasks are seen more often than their share
  (Raffel et al. 2020, T5, arXiv:1910.10683, section 3.5.2).

  Raises:
    Mistake: weights of some tasks only, weight and epochs of one, a number not above 0.
  """
  epochs = {**(epochs or {})}
  for name, value in epochs.items():
    if not _is_positive(value):
      raise Mistake(f'c.mixture.tasks.{name}.epochs={value!r}: a number above 0.')
  if not _is_positive(temperature):
    raise Mistake(f'c.mixture.temperature={temperature!r}: a number above 0.')
  said = {name: weight for name, weight in weights.items() if weight is not None}
  for name, weight in said.items():
    check_weight(name, weight)
  if both := said.keys() & epochs.keys():
    raise Mistake(f'c.mixture.tasks.{min(both)}: weight or epochs, not both.')
  if said and (bare := weights.keys() - said.keys()):
    raise Mistake(
      f'c.mixture.tasks.{min(bare)} has no weight and {min(said)} has one: all of them '
      'take one, or none (then they are seen in proportion to their size).'
    )
  if not said:
    total = sum(epochs.get(name, 1.0) * sizes[name] for name in weights)
    said = {name: epochs.get(name, 1.0) * sizes[name] / total for name in weights}
  if temperature == 1:
    return said
  total = sum(said.values())
  return {name: (weight / total) ** (1 / temperature) for name, weight in said.items()}


def _apportion(share: np.ndarray) -> np.ndarray:
  """PERIOD slots by largest remainders, at least one a task."""
  exact = share * (PERIOD - len(share))
  counts = np.floor(exact).astype(np.int64) + 1
  missing = PERIOD - int(counts.sum())
  counts[np.argsort(np.floor(exact) - exact, kind='stable')[:missing]] += 1
  return counts


def draw(
  mixture: Mixture, items: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Task, epoch and index within the task [N] of the stream's items [N]."""
  period, slot = np.divmod(items, PERIOD)
  task = mixture.slots[slot]
  size = mixture.sizes[task]
  epoch, place = np.divmod(period * mixture.counts[task] + mixture.ranks[slot], size)
  key = mix(mixture.keys[task] + epoch.astype(np.uint64) * _GOLDEN)
  return task, epoch, shuffle(place, size, key)


def drawn(mixture: Mixture, items: int) -> np.ndarray:
  """How many of the stream's first `items` each task gave [K]."""
  periods, rest = divmod(items, PERIOD)
  begun = np.bincount(mixture.slots[:rest], minlength=len(mixture.counts))
  return periods * mixture.counts + begun


def make_key(*words: int | str) -> int:
  """A 64-bit key from numbers and names."""
  text = '/'.join(map(str, words)).encode()
  return int.from_bytes(hashlib.sha256(text).digest()[:8], 'little')


def mix(x: np.ndarray) -> np.ndarray:
  """A bijection of uint64 that spreads every bit (splitmix64, Steele et al. 2014)."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def shuffle(index: np.ndarray, size: Any, key: Any) -> np.ndarray:
  """index [N] under the permutation of range(size) that the key picks.

  Args:
    index: [N] ints within range(size).
    size: int or [N] ints, at least 1.
    key: int or [N] uint64.
  """
  size = np.broadcast_to(np.asarray(size, np.uint64), index.shape)
  key = np.broadcast_to(np.asarray(key, np.uint64), index.shape)
  a = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
  b = (size + a - np.uint64(1)) // a
  x = index.astype(np.uint64)
  todo = np.arange(len(x))
  while len(todo):
    x[todo] = _feistel(x[todo], a[todo], b[todo], key[todo])
    todo = todo[x[todo] >= size[todo]]
  return x.astype(np.int64)


def _feistel(
  x: np.ndarray, a: np.ndarray, b: np.ndarray, key: np.ndarray
) -> np.ndarray:
  left, right = x % a, x // a
  for _ in range(4):
    left = (left + mix(key ^ mix(right + _GOLDEN)) % a) % a
    key = key + _GOLDEN
    right = (right + mix(key ^ mix(left + _GOLDEN)) % b) % b
    key = key + _GOLDEN
  return left + right * a
