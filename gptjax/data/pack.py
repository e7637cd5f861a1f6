"""Packing: documents to rows of fixed length, planned from lengths alone.

A document of n + 1 ids gives n pairs (input, target): inputs ids[:-1], targets ids[1:].
Lengths here count these pairs. A piece is a run of pairs of one document; each piece
is a segment of its own, whose positions count from 0.

  concat     documents joined and cut at the row's length: no padding but at the end
  best_fit   best-fit decreasing (Johnson 1974; for language models Ding et al. 2024,
             arXiv:2404.10830): no document is cut but those longer than a row

Letters: N documents, P pieces, R rows of a plan, B rows of a batch, T pairs of a row.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gptjax.lookup import nearest
from gptjax.words import Batch, Mistake


class Plan(NamedTuple):
  """Row r holds pieces first[r]:first[r + 1], from left to right.

  A piece has inputs ids[start:stop] and targets ids[start + 1:stop + 1] of a document.
  """

  first: np.ndarray  # [R + 1]
  document: np.ndarray  # [P] index among the lengths planned
  start: np.ndarray  # [P]
  stop: np.ndarray  # [P]

  @property
  def rows(self) -> int:
    """Rows of the plan."""
    return len(self.first) - 1


def plan(lengths: np.ndarray, length: int, packing: str) -> Plan:
  """Rows of `length` pairs for documents of `lengths` [N] pairs.

  Raises:
    Mistake: a packing that is neither 'concat' nor 'best_fit', a length below 1.
  """
  forms = {'concat': concat, 'best_fit': best_fit}
  if packing not in forms:
    raise Mistake(f'c.mixture.packing: {packing!r} unknown: {nearest(packing, forms)}')
  if length < 1:
    raise Mistake(f'c.mixture.length={length}: a row has at least 1 token.')
  return forms[packing](np.asarray(lengths, np.int64), length)


def cut(lengths: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Documents in consecutive pieces of at most `length`: document, start, stop [P]."""
  pieces = -(-lengths // length)  # [N]
  document = np.repeat(np.arange(len(lengths)), pieces)
  start = ramp(pieces) * length
  return document, start, np.minimum(start + length, lengths[document])


def ramp(counts: np.ndarray) -> np.ndarray:
  """0 .. n - 1 for each n of counts, one after another: [2, 3] -> [0, 1, 0, 1, 2]."""
  ends = np.cumsum(counts)
  return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def concat(lengths: np.ndarray, length: int) -> Plan:
  """Documents joined in order and cut at the row's length; only the end is padded."""
  ends = np.cumsum(lengths)
  total = int(ends[-1]) if len(ends) else 0
  bounds = np.union1d(ends, np.arange(0, total, length))
  bounds = np.union1d(bounds, [0])
  left, right = bounds[:-1], bounds[1:]
  document = np.searchsorted(ends, left, side='right')
  begin = (ends - lengths)[document]
  rows = -(-total // length)
  first = np.searchsorted(left, np.arange(rows + 1) * length)
  return Plan(first, document, left - begin, right - begin)


def best_fit(lengths: np.ndarray, length: int) -> Plan:
  """Longest pieces first, each into the fullest row that still has room for it."""
  document, start, stop = cut(lengths, length)
  sizes = stop - start
  order = np.argsort(-sizes, kind='stable')
  rows = _fit(sizes[order].tolist(), length)
  by_row = np.argsort(rows, kind='stable')
  first = np.searchsorted(rows[by_row], np.arange(rows.max(initial=-1) + 2))
  order = order[by_row]
  return Plan(first, document[order], start[order], stop[order])


def _fit(sizes: list[int], length: int) -> np.ndarray:
  """The row of each piece; sizes [P] decreasing. O(1) steps a piece.

  `room` has bit n set where rows with n free places exist, so that the fullest row
  which fits is the lowest set bit from the size on.
  """
  rows = np.zeros(len(sizes), np.int64)
  free: list[list[int]] = [[] for _ in range(length + 1)]
  room, count = 0, 0
  for piece, size in enumerate(sizes):
    fits = room >> size
    if fits:
      places = size + (fits & -fits).bit_length() - 1
      row = free[places].pop()
      if not free[places]:
        room ^= 1 << places
    else:
      places, row = length, count
      count += 1
    rows[piece] = row
    places -= size
    if places:
      if not free[places]:
        room |= 1 << places
      free[places].append(row)
  return rows


def fill(
  ids: Sequence[np.ndarray],
  counts: np.ndarray,
  length: int,
  extras: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> Batch:
  """A batch of B rows [B, T] from the ids of its pieces, left to right, row by row.

  Args:
    ids: for each piece its inputs and the target of the last one, [size + 1].
    counts: pieces of each row [B].
    length: T. Padding has token 0, segment 0, weight 0.
    extras: by name, for each piece float32 [size] of its targets: weights (1 each where
      not said), scores. Padding has 0.
  """
  sizes = np.fromiter(map(len, ids), np.int64, len(ids)) - 1  # [P]
  used = np.diff(np.concatenate([[0], np.cumsum(sizes)])[_bounds(counts)])  # [B]
  # A run of padding closes each row: then all is repetition, without a mask.
  runs = np.insert(sizes, np.cumsum(counts), length - used)  # [P + B]
  segments = np.insert(ramp(counts) + 1, np.cumsum(counts), 0)
  blank = np.zeros(length + 1, ids[0].dtype if len(ids) else np.int32)
  inputs: list[np.ndarray] = []
  targets: list[np.ndarray] = []
  at = 0
  for count, room in zip(counts.tolist(), (length - used).tolist(), strict=True):
    row = ids[at : at + count]
    inputs += [x[:-1] for x in row]
    targets += [x[1:] for x in row]
    inputs.append(blank[:room])
    targets.append(blank[:room])
    at += count
  shape = (len(counts), length)
  segments = np.repeat(segments.astype(np.int32), runs).reshape(shape)
  begins = np.repeat((np.cumsum(runs) - runs).astype(np.int32), runs)
  batch = {
    'tokens': _join(inputs, shape),
    'targets': _join(targets, shape),
    'weights': (segments > 0).astype(np.float32),
    'positions': (np.arange(begins.size, dtype=np.int32) - begins).reshape(shape),
    'segments': segments,
  }
  for name, values in (extras or {}).items():
    batch[name] = np.zeros(shape, np.float32)
    batch[name][segments > 0] = np.concatenate(values)
  return batch


def _bounds(counts: np.ndarray) -> np.ndarray:
  return np.concatenate([[0], np.cumsum(counts)])


def _join(runs: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
  joined = np.empty(shape, np.int32)
  if runs:
    np.concatenate(runs, out=joined.reshape(-1), casting='same_kind')
  return joined
