"""Train, validation and test: which documents are in which split.

By hash, the sha256 of a document's text decides, so that a document never moves when
others are added, and its copies stay on one side. By position, the text in its order is
cut: train first, then val, then test.
"""

import dataclasses
import hashlib
from array import array
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gptjax.lookup import nearest
from gptjax.sources.records import Records, pass_over
from gptjax.words import Conversation, Example, Mistake

NAMES = ('train', 'val', 'test', 'all')
DEFAULT = {'val': 0.05, 'test': 0.05}  # Fractions; train has the rest.
FEWEST = 10  # Documents of a validation or test split by hash.


@dataclasses.dataclass(frozen=True)
class Documents:
  """The Task over one split: example(i) and where(i) of its i-th document.

  digest: sha256 (hex) of the split's documents in order, wherever they lie.
  skipped: bad records and files passed over, of all splits together.
  labels: names of the classes, where documents are labelled.
  grade: how right an answer to an example is, from 0 to 1, where that can be said.
  answers: the right answers to a record, where there may be several.
  """

  name: str
  kind: str
  indices: np.ndarray  # [N] int64, records of the source.
  read: Callable[[int], Example]
  place: Callable[[int], str]
  digest: str
  skipped: int = 0
  labels: tuple[str, ...] = ()
  grade: Callable[[Any, str], float] | None = None
  answers: Callable[[int], list[str]] | None = None

  def __len__(self) -> int:
    return len(self.indices)

  def example(self, index: int) -> Example:
    """The i-th document of the split."""
    return self.read(self._record(index))

  def references(self, index: int) -> list[str]:
    """The right answers to the i-th document: its last turn, unless there are more."""
    if self.answers is not None:
      return self.answers(self._record(index))
    example = self.example(index)
    return [example.turns[-1].text] if isinstance(example, Conversation) else []

  def where(self, index: int) -> str:
    """Such as 'notes/a.txt:17', for messages."""
    return self.place(self._record(index))

  def _record(self, index: int) -> int:
    if not 0 <= index < len(self.indices):
      raise IndexError(f'document {index} of {len(self.indices)} of {self.name}')
    return int(self.indices[index])


class Survey(NamedTuple):
  """One pass over the documents of a source."""

  indices: np.ndarray  # [N] int64, records that are documents.
  prints: np.ndarray  # [N, 32] uint8, sha256 of each text.
  sizes: np.ndarray  # [N] int64, UTF-8 bytes of each text.
  skipped: int
  keys: np.ndarray  # [N, 32] uint8, sha256 of what decides the split.


def survey(
  records: Records,
  content: Callable[[int], bytes],
  on_bad: str,
  key: Callable[[int], bytes] | None = None,
) -> Survey:
  """Reads every document once.

  content: UTF-8 bytes of document i; raises ValueError with what is wrong with it.
  key: those of the part of it that decides its split; None: all of it does.

  Raises:
    Mistake: a bad document, with where it is, unless on_bad is skip.
  """
  indices, sizes, prints, skipped = array('q'), array('q'), bytearray(), 0
  keys = bytearray()
  for i in range(len(records)):
    try:
      data = content(i)
    except ValueError as why:
      skipped += pass_over(on_bad, _bad, records, i, why)
      continue
    indices.append(i)
    sizes.append(len(data))
    prints += hashlib.sha256(data).digest()
    if key is not None:
      keys += hashlib.sha256(key(i)).digest()
  return Survey(
    np.array(indices, np.int64),
    _rows(prints),
    np.array(sizes, np.int64),
    skipped,
    _rows(prints if key is None else keys),
  )


def _rows(sums: bytearray) -> np.ndarray:
  return np.frombuffer(sums, np.uint8).reshape(-1, 32)


def _bad(records: Records, index: int, why: ValueError) -> Mistake:
  return Mistake(f'{records.where(index)}: {why}.')


def fractions(splits: Mapping[str, float] | None) -> dict[str, float]:
  """The fractions of val and test, DEFAULT where not said.

  Raises:
    Mistake: another key, a number out of range, or nothing left for train.
  """
  given = dict(splits or {})
  for key, value in given.items():
    if key not in DEFAULT:
      hint = 'train is the rest. ' if key == 'train' else ''
      raise Mistake(f'splits has no {key!r}: {hint}{nearest(str(key), DEFAULT)}')
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
      raise Mistake(f'splits.{key}={value!r}: a fraction such as 0.05; 0 is none.')
  result = {**DEFAULT, **given}
  if not sum(result.values()) < 1:
    raise Mistake(f'splits {result} leave nothing for train: together under 1.')
  return result


def check_split(split: str, shares: Mapping[str, float], name: str) -> None:
  """Raises Mistake unless `split` is one of NAMES and not off."""
  if split not in NAMES:
    raise Mistake(f'split={split!r}: {nearest(str(split), NAMES)}')
  if not shares.get(split, 1):
    raise Mistake(f'{name}: split {split!r} is off (splits.{split}=0).')


def choose(
  found: Survey,
  split: str,
  shares: Mapping[str, float],
  by: str,
  name: str,
  cure: str,
  classes: np.ndarray | None = None,
) -> np.ndarray:
  """Which documents of a survey, [N] bool, are in a split.

  by: hash, position, or class: by hash within each of `classes` [N], so that every
    class has its share of each split.
  name, cure: of the data and what to change, for the message of an empty split.

  Raises:
    Mistake: the split is empty, or val or test by hash has under FEWEST documents.
  """
  if split == 'all':
    return np.ones(len(found.indices), bool)
  if by in ('hash', 'class'):
    part = _draws(found) if by == 'hash' else _ranks(found, classes)
    # From both ends: val does not depend on the size of test, nor test on val's.
    within = {'val': part < shares['val'], 'test': part >= 1 - shares['test']}
  else:
    ends = np.cumsum(found.sizes)
    begins, cuts = ends - found.sizes, bounds(int(ends[-1]), shares)
    within = {k: (begins >= cuts[k][0]) & (begins < cuts[k][1]) for k in DEFAULT}
  within['train'] = ~(within['val'] | within['test'])
  fewest = 1 if split == 'train' or by == 'position' else FEWEST
  count = int(within[split].sum())
  if count < fewest:
    least = f', of at least {FEWEST}' if fewest > 1 else ''
    raise Mistake(
      f'{name}: split {split!r} would hold {count} of {len(found.indices)} '
      f'documents{least}: {cure}.'
    )
  return within[split]


def _draws(found: Survey) -> np.ndarray:
  """Of each document [N] its place in [0, 1), by hash."""
  return found.keys[:, :8].copy().view('>u8')[:, 0] / 2.0**64


def _ranks(found: Survey, classes: Any) -> np.ndarray:
  """Of each document [N] its rank by hash within its class, in [0, 1).

  Documents of one key have one rank, so that copies stay together.
  """
  draws, ranks = _draws(found), np.zeros(len(found.indices))
  for name in np.unique(classes):
    mine = np.flatnonzero(classes == name)
    ordered = np.sort(draws[mine])
    ranks[mine] = np.searchsorted(ordered, draws[mine]) / len(mine)
  return ranks


def bounds(size: int, shares: Mapping[str, float]) -> dict[str, tuple[int, int]]:
  """Where each split begins and ends in a text of `size` bytes cut by position."""
  val = int(size * (1 - shares['val'] - shares['test']))
  test = int(size * (1 - shares['test']))
  return {'train': (0, val), 'val': (val, test), 'test': (test, size), 'all': (0, size)}


def cut_text(text: str, start: int, end: int) -> str:
  """The characters that begin in UTF-8 bytes [start, end) of a text."""
  data = text.encode()
  return data[_next_character(data, start) : _next_character(data, end)].decode()


def _next_character(data: bytes, at: int) -> int:
  while at < len(data) and data[at] & 0xC0 == 0x80:
    at += 1
  return at


def digest(kind: str, prints: np.ndarray) -> str:
  """sha256 (hex) of the documents' own sums, in order."""
  total = hashlib.sha256(kind.encode() + b'\n')
  total.update(np.ascontiguousarray(prints).data)
  return total.hexdigest()
