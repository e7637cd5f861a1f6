"""Rows of a mixture with random access: row r is a function of seed, data and r.

The stream of the mixture gives units: documents, and consecutive parts of those longer
than a unit (a row; for concat, 16 rows, since rows cut units anew). A window of some
thousand units is planned at a time, from lengths alone and equally on every host; its
rows come in an order of their own. Letters: N documents, U units, R rows of a window,
P pieces, T tokens of a row, B rows of a batch.

How many rows a window has is known when it is planned. To find row r, `seek` plans the
windows before it (about 1 microsecond a document) from any window whose first row is
known: the state of a Source carries that of its own, so a resume plans none.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gptjax.data import mixture as mixture_lib
from gptjax.data import pack
from gptjax.data.tokens import Tokens, check_enough
from gptjax.words import Batch, Mistake

FORMAT = 1  # Of the order of rows: another number, other rows.
_UNITS = {'best_fit': 1, 'concat': 16}  # Rows in the longest unit.


class Window(NamedTuple):
  """Row r of R has pieces first[r]:first[r + 1]: inputs ids[start:stop] of a part."""

  first: np.ndarray  # [R + 1]
  part: np.ndarray  # [P]
  start: np.ndarray  # [P]
  stop: np.ndarray  # [P]

  @property
  def rows(self) -> int:
    """Rows of the window."""
    return len(self.first) - 1


class Place(NamedTuple):
  """A window and the global row that is its first."""

  window: int
  row: int


ORIGIN = Place(0, 0)


class Rows(NamedTuple):
  """The endless rows of a mixture; made by `make_rows`."""

  length: int  # T
  digest: str  # sha256 (hex) of all that decides the rows.
  mixture: mixture_lib.Mixture
  units: int  # Of a window.
  window: Callable[[int], Window]
  part: Callable[[int], np.ndarray]
  extras: Mapping[str, Callable[[int], np.ndarray | None]]  # None: of a part of text.


class _Cuts(NamedTuple):
  """The units of one task: `ends` [N] counts them; None: every document is one."""

  tokens: Tokens
  size: int
  ends: np.ndarray | None
  key: int


def make_rows(
  tasks: Mapping[str, tuple[Tokens, float]],
  *,
  length: int,
  packing: str = 'best_fit',
  seed: int = 0,
  units: int = 2048,
) -> Rows:
  """Rows of `length` tokens from tasks by name, with the shares of tokens wanted.

  Raises:
    Mistake: a task with less than a row, a bad weight, packing, length or window.
  """
  pack.plan(np.zeros(0, np.int64), length, packing)  # Checks its arguments.
  if units < 1:
    raise Mistake(f'c.mixture.window={units}: at least 1 document.')
  size = length * _UNITS[packing]
  for name, (tokens, weight) in tasks.items():
    mixture_lib.check_weight(name, weight)
    check_enough(tokens, length)
    if tokens.extras and packing != 'best_fit':
      raise Mistake(
        f'c.mixture.packing={packing} would cut within the answers of '
        f'c.mixture.tasks.{name}: take best_fit.'
      )
  cuts = [
    _cuts(tokens, size, mixture_lib.make_key(seed, 'shift', name))
    for name, (tokens, _) in tasks.items()
  ]
  sizes = {name: _count(c) for name, c in zip(tasks, cuts, strict=True)}
  mixture = mixture_lib.make_mixture(
    sizes,
    # A share counts units; weights count tokens.
    {n: weight * sizes[n] / tokens.targets for n, (tokens, weight) in tasks.items()},
    seed,
  )
  bases = np.cumsum([0] + [_parts(c.tokens) for c in cuts])

  def owner(number: int) -> tuple[Tokens, int]:
    task = int(np.searchsorted(bases, number, side='right')) - 1
    return cuts[task].tokens, number - int(bases[task])

  def part(number: int) -> np.ndarray:
    tokens, own = owner(number)
    return tokens.part(own)

  def extra(name: str, number: int) -> np.ndarray | None:
    tokens, own = owner(number)
    return tokens.extras[name](own) if name in tokens.extras else None

  @functools.lru_cache(4)
  def window(number: int) -> Window:
    items = number * units + np.arange(units)
    where = _where(cuts, bases, *mixture_lib.draw(mixture, items))
    plan = pack.plan(where[2] - where[1], length, packing)
    key = mixture_lib.make_key(seed, 'rows', number)
    return _window(plan, *where, key)

  settings = {
    'format': FORMAT,
    'seed': seed,
    'length': length,
    'packing': packing,
    'units': units,
    'tasks': [[name, float(w), tokens.digest] for name, (tokens, w) in tasks.items()],
  }
  digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
  names = dict.fromkeys(n for tokens, _ in tasks.values() for n in tokens.extras)
  extras = {name: functools.partial(extra, name) for name in names}
  return Rows(length, digest, mixture, units, window, part, extras)


def _cuts(tokens: Tokens, size: int, key: int) -> _Cuts:
  pairs = tokens.lengths - 1
  long = len(pairs) and int(pairs.max()) > size
  return _Cuts(tokens, size, np.cumsum(-(-pairs // size)) if long else None, key)


def _count(cuts: _Cuts) -> int:
  return len(cuts.tokens.lengths) if cuts.ends is None else int(cuts.ends[-1])


def _parts(tokens: Tokens) -> int:
  return int(tokens.parts[-1]) + 1 if len(tokens.parts) else 0


def _where(
  cuts: list[_Cuts],
  bases: np.ndarray,
  task: np.ndarray,
  epoch: np.ndarray,
  index: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Part, and first and last + 1 input within the part, of each unit [U]."""
  part, start, stop = (np.zeros(len(task), np.int64) for _ in range(3))
  for number, c in enumerate(cuts):
    mine = np.flatnonzero(task == number)
    document, begin, end = _unit(c, epoch[mine], index[mine])
    part[mine] = bases[number] + c.tokens.parts[document]
    start[mine] = c.tokens.offsets[document] + begin
    stop[mine] = c.tokens.offsets[document] + end
  return part, start, stop


def _unit(
  cuts: _Cuts, epoch: np.ndarray, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Document, first and last + 1 input of units.

  Where a document is cut differs between epochs: its first unit is shorter, by as much
  as leaves the number of units the same.
  """
  if cuts.ends is None:
    return index, np.zeros_like(index), cuts.tokens.lengths[index] - 1
  document = np.searchsorted(cuts.ends, index, side='right')
  pairs = cuts.tokens.lengths[document] - 1
  count = -(-pairs // cuts.size)
  number = index - (cuts.ends[document] - count)
  least = pairs - (count - 1) * cuts.size
  key = mixture_lib.mix(np.uint64(cuts.key) ^ epoch.astype(np.uint64))
  draw = mixture_lib.mix(key ^ mixture_lib.mix(document.astype(np.uint64)))
  spare = (cuts.size - least + 1).astype(np.uint64)
  shift = least + (draw % spare).astype(np.int64)
  begin = np.where(number == 0, 0, shift + (number - 1) * cuts.size)
  return document, begin, np.minimum(shift + number * cuts.size, pairs)


def _window(
  plan: pack.Plan, part: np.ndarray, start: np.ndarray, stop: np.ndarray, key: int
) -> Window:
  """The plan's rows in the order that the key picks, pieces placed in their parts."""
  order = mixture_lib.shuffle(np.arange(plan.rows), plan.rows, key)
  counts = np.diff(plan.first)[order]
  piece = np.repeat(plan.first[order], counts) + pack.ramp(counts)
  unit = plan.document[piece]
  begin = start[unit]
  return Window(
    first=np.concatenate([[0], np.cumsum(counts)]),
    part=part[unit],
    start=begin + plan.start[piece],
    stop=begin + plan.stop[piece],
  )


def seek(rows: Rows, row: int, place: Place = ORIGIN) -> Place:
  """The window that holds a global row, going on from one at or before it."""
  window, first = place
  while first + rows.window(window).rows <= row:
    first += rows.window(window).rows
    window += 1
  return Place(window, first)


def read(rows: Rows, start: int, stop: int, place: Place = ORIGIN) -> Batch:
  """Global rows start:stop as arrays [B, T]; `place` is at or before the first."""
  place = seek(rows, start, place)
  pieces, counts = [], []
  while start < stop:
    place = seek(rows, start, place)
    window = rows.window(place.window)
    row, end = start - place.row, min(stop - place.row, window.rows)
    a, b = window.first[row], window.first[end]
    counts.append(np.diff(window.first[row : end + 1]))
    pieces.append(np.stack([window.part[a:b], window.start[a:b], window.stop[a:b]]))
    start = place.row + end
  return made(rows.part, rows.extras, pieces, np.concatenate(counts), rows.length)


def made(
  part: Callable[[int], np.ndarray],
  extras: Mapping[str, Callable[[int], np.ndarray | None]],
  pieces: Sequence[np.ndarray],
  counts: np.ndarray,
  length: int,
) -> Batch:
  """The batch of pieces, given as [3, P] of their part, start and stop."""
  where = np.concatenate(pieces, axis=1)
  found = {name: _extra_slices(name, load, *where) for name, load in extras.items()}
  return pack.fill(slices(part, *where), counts, length, found)


def _extra_slices(
  name: str,
  load: Callable[[int], np.ndarray | None],
  parts: np.ndarray,
  start: np.ndarray,
  stop: np.ndarray,
) -> list[np.ndarray]:
  """Of the targets of each piece; text weighs 1 and has scores 0."""
  flat = {int(number): load(int(number)) for number in np.unique(parts)}
  default, found = 1.0 if name == 'weights' else 0.0, []
  for n, a, b in zip(parts.tolist(), start.tolist(), stop.tolist(), strict=True):
    own = flat[n]
    none = own is None
    found.append(np.full(b - a, default, np.float32) if none else own[a + 1 : b + 1])
  return found


def slices(
  part: Callable[[int], np.ndarray],
  parts: np.ndarray,
  start: np.ndarray,
  stop: np.ndarray,
) -> list[np.ndarray]:
  """The ids [stop - start + 1] of each piece: its inputs and its last target."""
  flat = {int(number): part(int(number)) for number in np.unique(parts)}
  spans = zip(parts.tolist(), start.tolist(), (stop + 1).tolist(), strict=True)
  return [flat[number][a:b] for number, a, b in spans]
