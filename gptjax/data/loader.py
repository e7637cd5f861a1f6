"""Batches for training, made ahead by a thread, and the batches of an evaluation.

`make_source` is the Source of pretraining and fine-tuning: global rows in order, each
host making only its own. `eval_batches` is a split once through. B rows of a global
batch, T tokens of a row.
"""

import contextvars
import functools
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from gptjax import sharding
from gptjax.data import mixture as mixture_lib
from gptjax.data import pack
from gptjax.data import rows as rows_lib
from gptjax.data import shards as shards_lib
from gptjax.data.fit import Recipe, make_roles
from gptjax.data.rows import ORIGIN, Place, Rows
from gptjax.data.tokens import Tokens, check_enough
from gptjax.words import Batch, Mistake, Task, Template, Tokenizer, Tree


def make_source(
  tasks: Mapping[str, tuple[Task, float | None]],
  tokenizer: Tokenizer,
  *,
  length: int,
  batch_size: int,
  packing: str = 'best_fit',
  epochs: Mapping[str, float] | None = None,
  temperature: float = 1.0,
  template: Template | None = None,
  roles: Mapping[str, float] | None = None,
  seed: int = 0,
  window: int = 2048,
  shards: Any = None,
  hosts: int | None = None,
  host: int | None = None,
  prefetch: int = 2,
  changed: bool = False,
  workers: int | None = None,
  say: Callable[[str], None] | None = None,
) -> 'DataSource':
  """Batches of a weighted mixture of tasks.

  Args:
    tasks: by name, with weights: shares of the tokens seen; None: by size.
    tokenizer: its start and end go around each document.
    length: T, tokens of a row.
    batch_size: B, rows of a global batch.
    packing: 'best_fit' or 'concat', see pack.py.
    epochs: of tasks without weights, how often they are seen when others are once.
    temperature: above 1, small shares become larger; see mixture.make_weights.
    template: how conversations are written.
    roles: weights of their turns, see fit.py.
    seed: of the order of documents.
    window: documents (or parts of long ones) whose packing is planned together.
    shards: folder of the tokenized corpora, see shards.tokenize.
    hosts: processes that share each batch; default all of jax.
    host: which of them this is.
    prefetch: batches made ahead.
    changed: whether set_state may go on at the same row of other data.
    workers: processes that tokenize a large corpus.
    say: takes lines for the user.

  Raises:
    Mistake: no task, a weight not above 0, a task with less than a row, rows that the
      hosts do not divide.
    Failure: a damaged shard.
  """
  if not tasks:
    raise Mistake('c.mixture.tasks is empty: name at least one task.')
  weights = {name: weight for name, (_, weight) in tasks.items()}
  mixture_lib.make_weights(weights, dict.fromkeys(tasks, 1), epochs, temperature)
  recipe = Recipe(template, make_roles(roles), length)
  tokens = {
    name: shards_lib.tokenize(
      task, tokenizer, shards, recipe=recipe, workers=workers, say=say
    )
    for name, (task, _) in tasks.items()
  }
  sizes = {name: max(1, t.targets) for name, t in tokens.items()}
  weights = mixture_lib.make_weights(weights, sizes, epochs, temperature)
  rows = rows_lib.make_rows(
    {name: (t, weights[name]) for name, t in tokens.items()},
    length=length,
    packing=packing,
    seed=seed,
    units=window,
  )
  for name, (task, _) in tasks.items():
    if say:
      say(_sizes(name, task, tokens[name]))
  mine = _host_rows(batch_size, hosts, host)
  return DataSource(rows, batch_size, mine, prefetch, changed)


def _sizes(name: str, task: Task, tokens: Tokens) -> str:
  """What a task holds, in a line."""
  line = f'{name}: {len(tokens.lengths):,} documents, {tokens.targets:,} tokens'
  if tokens.extras:
    total = len(tokens.lengths) + tokens.left
    for count, what in ((tokens.cut, 'cut to fit'), (tokens.left, 'left out')):
      line += f', {count:,} ({count / total:.1%}) {what}'
  else:
    line += f', {tokens.bytes / tokens.targets:.2f} bytes per token'
  skipped = getattr(task, 'skipped', 0)
  return f'{line}; {skipped:,} bad ones skipped.' if skipped else f'{line}.'


def _host_rows(batch_size: int, hosts: int | None, host: int | None) -> range:
  """This host's rows of a global batch."""
  hosts = jax.process_count() if hosts is None else hosts
  host = jax.process_index() if host is None else host
  if batch_size < 1 or batch_size % hosts:
    raise Mistake(
      f'c.batch_size={batch_size} is no multiple of the {hosts} hosts that share it.'
    )
  share = batch_size // hosts
  return range(host * share, (host + 1) * share)


class _Made(NamedTuple):
  """A batch made ahead, and where it leaves off."""

  batch: Batch
  rows: int
  place: Place
  real: int  # Tokens that are no padding.


class DataSource:
  """The Source of a mixture; `make_source` makes it.

  Its state is plain: 'rows' used, the 'digest' of all that decides them, and the window
  which the next row lies in with the number of its first row, so that a resume need
  not plan those before. It is the same on any number of hosts.

  Attributes:
    waited: seconds that `next` has waited for batches, in all.
  """

  def __init__(
    self,
    rows: Rows,
    batch_size: int,
    mine: range,
    prefetch: int,
    changed: bool,
  ):
    self.waited = 0.0
    self._rows, self._changed = rows, changed
    self._batch_size, self._mine, self._prefetch = batch_size, mine, prefetch
    self._used, self._place = 0, ORIGIN
    self._seen = [0, 0]  # Real tokens and all, of batches returned here.
    self._queue: queue.Queue | None = None
    self._end: Callable[[], Any] = lambda: None

  def next(self, weights: Any = None) -> Batch:
    """The next batch [B, T], laid out over the mesh; `weights` is not called.

    Raises:
      Exception: whatever went wrong while the batch was made, such as Failure.
    """
    if self._queue is None:
      self._start()
    begin = time.perf_counter()
    assert self._queue is not None
    made = self._queue.get()
    self.waited += time.perf_counter() - begin
    if isinstance(made, BaseException):
      self.close()
      raise made
    self._used, self._place = made.rows, made.place
    self._seen[0] += made.real
    self._seen[1] += len(self._mine) * self._rows.length
    return made.batch

  def _start(self) -> None:
    self._queue = queue.Queue(max(1, self._prefetch))
    stop = threading.Event()
    batches = _batches(
      self._rows, self._used, self._place, self._batch_size, self._mine
    )
    # The mesh in force is known to the thread by the caller's context. The thread must
    # not know the source, or the source would never be collected.
    thread = threading.Thread(
      target=contextvars.copy_context().run,
      args=(_make_ahead, batches, self._queue, stop),
      name='gptjax-batches',
      daemon=True,
    )
    thread.start()
    self._end = weakref.finalize(self, _end, stop, thread)

  def close(self) -> None:
    """Ends the thread; `next` would start another, after the batch last returned."""
    self._end()
    self._queue = None

  def get_state(self) -> Tree:
    """{'rows', 'window', 'window_row', 'digest'} after the batch last returned."""
    return {
      'rows': self._used,
      'window': self._place.window,
      'window_row': self._place.row,
      'digest': self._rows.digest,
    }

  def set_state(self, state: Tree) -> None:
    """Goes on after the batch that the state speaks of.

    Raises:
      Mistake: a state of other data, another tokenizer, mixture, length or seed.
    """
    same = state['digest'] == self._rows.digest
    if not same and not self._changed:
      raise Mistake(
        'the data differ from those of the checkpoint: files, tokenizer, tasks and '
        'their weights, length, packing and seed must stay the same for a resume. Put '
        'them back, start afresh (--fresh), or take weights only (c.init).'
      )
    self.close()
    self._used = int(state['rows'])
    known = Place(int(state['window']), int(state['window_row']))
    self._place = rows_lib.seek(self._rows, self._used, known if same else ORIGIN)

  def stats(self) -> dict[str, float]:
    """Numbers by name, as far as the batch last returned.

    epochs/<task>: how often the task has been seen; padding: share of the places of the
    batches that this process returned.
    """
    mixture = self._rows.mixture
    epochs = self._items() / mixture.sizes
    found = {
      f'epochs/{k}': float(n) for k, n in zip(mixture.names, epochs, strict=True)
    }
    real, places = self._seen
    return {**found, 'padding': 1 - real / places if places else 0.0}

  def _items(self) -> np.ndarray:
    """Units drawn from each task up to the row last used [K], within a window's row."""
    units, place = self._rows.units, self._place
    part = (self._used - place.row) / self._rows.window(place.window).rows
    items = place.window * units + round(part * units)
    return mixture_lib.drawn(self._rows.mixture, items)


def _batches(
  rows: Rows, used: int, place: Place, batch_size: int, mine: range
) -> Iterator[_Made]:
  """This host's rows of every batch from row `used` on."""
  numbers = np.arange(mine.start, mine.stop, dtype=np.int32)
  while True:
    place = rows_lib.seek(rows, used, place)
    batch = rows_lib.read(rows, used + mine.start, used + mine.stop, place)
    real = int(np.count_nonzero(batch['segments']))
    used += batch_size
    place = rows_lib.seek(rows, used, place)
    yield _Made(sharding.put({**batch, 'rows': numbers}), used, place, real)


def _make_ahead(
  batches: Iterator[Any], ahead: queue.Queue, stop: threading.Event
) -> None:
  """Puts batches, and the error that ends them, into the queue until told to stop."""
  made: Any = None
  while not isinstance(made, BaseException):
    try:
      made = next(batches)
    except BaseException as e:  # The caller of next() gets it, whatever it is.
      made = e
    while True:
      if stop.is_set():
        return
      try:
        ahead.put(made, timeout=0.1)
        break
      except queue.Full:
        continue


def _end(stop: threading.Event, thread: threading.Thread) -> None:
  stop.set()
  if thread is not threading.current_thread():
    thread.join(5.0)


class Split(NamedTuple):
  """A split to evaluate on: batches (again at each iteration), and what they hold."""

  batches: Iterable[Batch]
  bytes: float  # UTF-8 bytes of the texts, times their weights.
  tokens: int  # Targets over all hosts: tokens and ends of documents.


class _Batches:
  """Finite batches, from the start at each iteration; len() of them."""

  def __init__(self, count: int, make: Callable[[int], Batch]):
    self._count, self._make = count, make

  def __len__(self) -> int:
    return self._count

  def __iter__(self) -> Iterator[Batch]:
    return map(self._make, range(self._count))


def eval_batches(
  task: Task,
  tokenizer: Tokenizer,
  length: int,
  batch_size: int,
  *,
  template: Template | None = None,
  roles: Mapping[str, float] | None = None,
  shards: Any = None,
  hosts: int | None = None,
  host: int | None = None,
  workers: int | None = None,
  say: Callable[[str], None] | None = None,
) -> Split:
  """All documents of a task, every token once, as batches [B, T] laid out by the mesh.

  Texts longer than a row are cut in consecutive pieces: piece j has inputs
  ids[jT:(j+1)T]; conversations and labels as fit.py says. Short ones share rows. The
  last batch is padded with empty rows (weights 0), so that every host makes the same
  number of batches of the same shape.

  Raises:
    Mistake: no documents, or less than one row.
  """
  tokens = shards_lib.tokenize(
    task,
    tokenizer,
    shards,
    recipe=Recipe(template, make_roles(roles), length),
    workers=workers,
    say=say,
  )
  check_enough(tokens, length)
  if say and tokens.extras:
    say(_sizes(f'evaluation of {task.name}', task, tokens))
  plan = pack.best_fit(tokens.lengths - 1, length)
  mine = _host_rows(batch_size, hosts, host)
  make = functools.partial(_eval_batch, tokens, plan, length, batch_size, mine)
  return Split(
    _Batches(-(-plan.rows // batch_size), make), tokens.bytes, tokens.targets
  )


def _eval_batch(
  tokens: Tokens, plan: pack.Plan, length: int, batch_size: int, mine: range, n: int
) -> Batch:
  """This host's rows of batch n."""
  row = np.arange(n * batch_size + mine.start, n * batch_size + mine.stop + 1)
  first = plan.first[np.minimum(row, plan.rows)]  # [B + 1]
  pieces = slice(first[0], first[-1])
  document = plan.document[pieces]
  begin = tokens.offsets[document]
  start, stop = begin + plan.start[pieces], begin + plan.stop[pieces]
  where = np.stack([tokens.parts[document], start, stop])
  batch = rows_lib.made(tokens.part, tokens.extras, [where], np.diff(first), length)
  rows = np.arange(mine.start, mine.stop, dtype=np.int32)
  return sharding.put({**batch, 'rows': rows})
