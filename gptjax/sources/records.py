"""Records by index: what every source gives, before any token.

A record is a dict of what its line, row or file holds. Sources check all records when
they are opened, so that bad input shows at the start and not an hour into a run.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from gptjax.lookup import nearest
from gptjax.words import Mistake

ON_BAD = ('error', 'skip')
LONGEST = 2**30  # Bytes of one record: above, it is no document but a mistake.


@dataclasses.dataclass(frozen=True)
class Records:
  """Records by index; made by the functions of this room. Pickles by its files' names.

  digest: sha256 (hex) of the bytes, names and compression left out.
  skipped: bad records and files passed over with on_bad='skip'.
  """

  size: int
  read: Callable[[int], dict[str, Any]]
  place: Callable[[int], str]
  digest: str
  skipped: int = 0

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.read(self._check(index))

  def where(self, index: int) -> str:
    """Such as 'notes/a.txt:17', for messages."""
    return self.place(self._check(index))

  def _check(self, index: int) -> int:
    # IndexError also ends a for loop over records.
    if not 0 <= index < self.size:
      raise IndexError(f'record {index} of {self.size}')
    return int(index)


def check_on_bad(on_bad: str) -> None:
  """Raises Mistake unless `on_bad` is 'error' or 'skip'."""
  if on_bad not in ON_BAD:
    raise Mistake(f'on_bad={on_bad!r}: {nearest(str(on_bad), ON_BAD)}')


def pass_over(on_bad: str, make: Callable[..., Mistake], *args: Any) -> int:
  """The one place that decides about bad input: raises make(*args), or counts 1."""
  if on_bad == 'skip':
    return 1
  raise Mistake(f"{make(*args)} (on_bad='skip' passes over it)") from None


def not_empty(records: Records, path: str) -> Records:
  """The records, if there are any.

  Raises:
    Mistake: none is left: an empty source must never become an endless loop.
  """
  if not len(records):
    bad = f' ({records.skipped} bad ones skipped)' if records.skipped else ''
    raise Mistake(f'{path} holds no document{bad}.')
  return records
