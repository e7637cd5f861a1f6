"""Documents tokenized by several processes, in the order of their shards.

The parent reads the documents, so that bad ones are met in one place; the workers hold
the tokenizer, loaded from a folder that it was saved to.
"""

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import functools
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from etils import epath

from gptjax.data import tokens as tokens_lib
from gptjax.words import Failure, Task, Tokenizer

_BATCH = 1 << 20  # Characters handed to a worker at a time.

Span = tuple[int, int, int]  # Number of a shard, its first document, the one after.
Run = tuple[np.ndarray, np.ndarray, int]  # What tokens.encode gives.


def tokenized(
  task: Task, tokenizer: Tokenizer, spans: Sequence[Span], workers: int
) -> Iterator[tuple[Span, list[Run]]]:
  """Shards in order, with the ids of all their documents; workers=0: by this process.

  Raises:
    Failure: a worker died.
  """
  with contextlib.ExitStack() as stack:
    if workers:
      folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='tokenizer'))
      tokenizer.save(epath.Path(folder))
      pool = stack.enter_context(
        concurrent.futures.ProcessPoolExecutor(
          workers, multiprocessing.get_context('spawn'), _start_worker
        )
      )
      runs = _ahead(pool, folder, _batches(task, spans), workers)
    else:
      runs = (
        (span, last, tokens_lib.encode(texts, tokenizer))
        for span, last, texts in _batches(task, spans)
      )
    gathered: list[Run] = []
    for span, last, run in runs:
      gathered.append(run)
      if last:
        yield span, gathered
        gathered = []


def _batches(
  task: Task, spans: Sequence[Span]
) -> Iterator[tuple[Span, bool, list[str]]]:
  """Texts of about _BATCH characters, and whether they are the shard's last."""
  for span in spans:
    texts: list[str] = []
    size = 0
    for index in range(span[1], span[2]):
      texts.append(tokens_lib.document(task, index))
      size += len(texts[-1])
      last = index + 1 == span[2]
      if size >= _BATCH or last:
        yield span, last, texts
        texts, size = [], 0


def _ahead(
  pool: concurrent.futures.Executor,
  folder: str,
  batches: Iterable[tuple[Span, bool, list[str]]],
  workers: int,
) -> Iterator[tuple[Span, bool, Run]]:
  """Batches tokenized by the pool, in order, a few a worker under way."""
  waiting: collections.deque = collections.deque()
  try:
    for span, last, texts in batches:
      waiting.append((span, last, pool.submit(_encode, folder, texts)))
      if len(waiting) > 3 * workers:
        span, last, future = waiting.popleft()
        yield span, last, future.result()
    while waiting:
      span, last, future = waiting.popleft()
      yield span, last, future.result()
  except concurrent.futures.process.BrokenProcessPool as e:
    raise Failure(
      'a process that tokenized died (out of memory?); the same command again goes on '
      'with the shards that are finished.'
    ) from e


def _start_worker() -> None:
  """Leaves Ctrl-C to the parent, and ends with it: a killed one leaves no orphans."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None

  def watch() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _encode(folder: str, texts: list[str]) -> Run:
  return tokens_lib.encode(texts, _load(folder))


@functools.cache
def _load(folder: str) -> Tokenizer:
  from gptjax.tokenizers import store

  return store.load(epath.Path(folder))
