"""Which request sits in which slot, and what comes out: continuous batching.

Requests join free slots between two steps and leave them when they end (Yu et al. 2022,
Orca). What a request draws does not depend on its companions.
"""

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gptjax.generate import sampling
from gptjax.generate.engine import Engine, State, plan, prefill
from gptjax.generate.sampling import Settings
from gptjax.words import Array, Cache, Mistake


class Request(NamedTuple):
  """What to continue, and how."""

  ids: Sequence[int]  # The prompt: at least one token, such as the start token.
  max_tokens: int | None = None  # New tokens; None: until the context is full.
  settings: Settings = Settings()
  stop_ids: Collection[int] = ()  # Each of them ends the answer.
  n: int = 1  # Answers; answer i draws with seed + i.


class Event(NamedTuple):
  """A token drawn. The last one of an answer says why it ended.

  finish_reason is 'stop' (the id is one of stop_ids), 'length' (max_tokens, or the
  context is full) or None: more will come.
  """

  request: int  # Its number in the order of `requests`.
  answer: int  # From 0 to n - 1.
  id: int
  logprob: float  # Nats, under the model itself: before temperature and filters.
  finish_reason: str | None


def check(engine: Engine, request: Request) -> Request:
  """The request, if the engine can serve it.

  Raises:
    Mistake: it cannot, and why.
  """
  size, n, most = len(request.ids), request.n, request.max_tokens
  if not size:
    raise Mistake('a prompt has no tokens: it begins with the start token at least.')
  if size >= engine.length:
    raise Mistake(
      f'a prompt of {size} tokens, and at least one new one, must fit the context of '
      f'{engine.length} tokens: shorten the prompt.'
    )
  if not 0 <= min(request.ids) <= max(request.ids) < engine.vocab:
    raise Mistake(f'a prompt has ids outside the vocabulary of {engine.vocab}.')
  if n < 1 or (most is not None and most < 1):
    raise Mistake(f'n={n}, max_tokens={most}: allowed is at least 1.')
  sampling.check(request.settings)
  return request


@dataclasses.dataclass
class _Seat:
  """An answer under way, as the host knows it."""

  request: Request
  number: int
  answer: int
  limit: int  # New tokens, at most.
  sent: int = 0  # Steps begun for it.
  read: int = 0  # Tokens read of it.
  over: bool = False


def generate(
  engine: Engine,
  requests: Iterable[Request],
  dropped: Collection[tuple[int, int]] = frozenset(),
) -> Iterator[Event]:
  """Answers all requests, as many at a time as there are slots.

  The host reads each step's tokens while the device makes the next ones.

  Args:
    engine: of `make_engine`.
    requests: taken one by one as slots become free.
    dropped: (request, answer) that nobody wants any more; the caller may add to it
      between two events.

  Yields:
    The tokens, those of one answer in order, each as soon as it is known.

  Raises:
    Mistake: a request that the engine cannot serve.
  """
  state = engine.new_state()
  waiting = _answers(engine, requests)
  seats: list[_Seat | None] = [None] * engine.slots
  unread: tuple[list[_Seat | None], Array, Array] | None = None
  while True:
    state = _fill(engine, state, seats, waiting)
    begun = None
    if any(seats):
      state, ids, logprobs = engine.step(engine.weights, state)
      begun = (list(seats), ids, logprobs)
      for slot, seat in enumerate(seats):
        if seat:
          seat.sent += 1
          if seat.sent == seat.limit:  # The slot is free before the token is read.
            seats[slot] = None
    elif unread is None:
      return
    if unread:
      yield from _read(seats, *unread, dropped)
    unread = begun


def _answers(engine: Engine, requests: Iterable[Request]) -> Iterator[_Seat]:
  for number, request in enumerate(requests):
    check(engine, request)
    limit = engine.length - len(request.ids)
    if request.max_tokens is not None:
      limit = min(limit, request.max_tokens)
    for answer in range(request.n):
      yield _Seat(request, number, answer, limit)


def _read(
  seats: list[_Seat | None],
  then: list[_Seat | None],
  ids: Array,
  logprobs: Array,
  dropped: Collection[tuple[int, int]],
) -> Iterator[Event]:
  """Events of a step over the seats of `then`; frees the slots of those that end."""
  for slot, (id_, logprob) in enumerate(
    zip(np.asarray(ids).tolist(), np.asarray(logprobs).tolist(), strict=True)
  ):
    seat = then[slot]
    if seat is None or seat.over:
      continue
    name = (seat.number, seat.answer)
    reason = None
    if name not in dropped:
      seat.read += 1
      if id_ in seat.request.stop_ids:
        reason = 'stop'
      elif seat.read == seat.limit:
        reason = 'length'
      yield Event(*name, id_, logprob, reason)
    if reason or name in dropped:
      seat.over = True
      if seats[slot] is seat:
        seats[slot] = None


def _fill(
  engine: Engine,
  state: State,
  seats: list[_Seat | None],
  waiting: Iterator[_Seat],
) -> State:
  """Prefills waiting answers into the free slots."""
  free = [slot for slot, seat in enumerate(seats) if seat is None]
  joining = list(zip(free, itertools.islice(waiting, len(free)), strict=False))
  by_plan: dict[tuple[int, ...], list[list[tuple[int, _Seat]]]] = {}
  for _, answers in itertools.groupby(joining, lambda pair: pair[1].number):
    group = list(answers)  # Answers to one request: one prefill.
    key = plan(engine, len(group[0][1].request.ids) - 1)
    by_plan.setdefault(key, []).append(group)
  for sizes, groups in by_plan.items():
    for i in range(0, len(groups), engine.rows):
      some = groups[i : i + engine.rows]
      rows = prefill(engine, sizes, [group[0][1].request.ids for group in some])
      for row, group in enumerate(some):
        for slot, seat in group:
          state = _sit(engine, state, rows, row, slot, seat)
          seats[slot] = seat
  return state


def _sit(
  engine: Engine, state: State, rows: Cache, row: int, slot: int, seat: _Seat
) -> State:
  ids, settings = seat.request.ids, seat.request.settings
  seen = np.zeros(engine.vocab, bool)
  seen[np.asarray(ids)] = True
  settings = settings._replace(seed=(int(settings.seed) + seat.answer) % 2**32)
  return engine.join(
    state,
    rows,
    np.int32(row),
    np.int32(slot),
    np.int32(ids[-1]),
    np.int32(seat.limit),
    seen,
    settings.arrays(),
  )
