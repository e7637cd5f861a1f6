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
from collections.abc import Callable, Iterable, Iterator, Sequence

from etils import epath

from gptjax.data import tokens as tokens_lib
from gptjax.data.fit import Recipe
from gptjax.data.tokens import Coded, Document
from gptjax.words import Failure, Task, Template, Tokenizer

_BATCH = 1 << 20  # Characters handed to a worker at a time.

Span = tuple[int, int, int]  # Number of a shard, its first document, the one after.


def tokenized(
  task: Task,
  tokenizer: Tokenizer,
  recipe: Recipe,
  spans: Sequence[Span],
  workers: int,
) -> Iterator[tuple[Span, list[Coded]]]:
  """Shards in order, with the ids of all their documents; workers=0: by this process.

  Raises:
    Failure: a worker died.
  """
  with contextlib.ExitStack() as stack:
    if workers:
      folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='tokenizer'))
      tokenizer.save(epath.Path(folder))
      if recipe.template is not None:
        recipe.template.save(epath.Path(folder))
      pool = stack.enter_context(
        concurrent.futures.ProcessPoolExecutor(
          workers, multiprocessing.get_context('spawn'), _start_worker
        )
      )
      plain = recipe._replace(template=None)  # The workers load it from the folder.
      encode = functools.partial(_encode, folder, plain, task.kind)
      coded = _ahead(pool, encode, _batches(task, spans), workers)
    else:
      coded = (
        (span, last, tokens_lib.encode(documents, tokenizer, recipe, task.kind))
        for span, last, documents in _batches(task, spans)
      )
    gathered: list[Coded] = []
    for span, last, some in coded:
      gathered.append(some)
      if last:
        yield span, gathered
        gathered = []


def _batches(
  task: Task, spans: Sequence[Span]
) -> Iterator[tuple[Span, bool, list[Document]]]:
  """Documents of about _BATCH bytes, and whether they are the shard's last."""
  for span in spans:
    documents: list[Document] = []
    size = 0
    for index in range(span[1], span[2]):
      documents.append(tokens_lib.document(task, index))
      size += tokens_lib.size_of(documents[-1])
      last = index + 1 == span[2]
      if size >= _BATCH or last:
        yield span, last, documents
        documents, size = [], 0


def _ahead(
  pool: concurrent.futures.Executor,
  encode: Callable[[list[Document]], Coded],
  batches: Iterable[tuple[Span, bool, list[Document]]],
  workers: int,
) -> Iterator[tuple[Span, bool, Coded]]:
  """Batches tokenized by the pool, in order, a few a worker under way."""
  waiting: collections.deque = collections.deque()
  try:
    for span, last, documents in batches:
      waiting.append((span, last, pool.submit(encode, documents)))
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


def _encode(folder: str, recipe: Recipe, kind: str, documents: list[Document]) -> Coded:
  tokenizer, own = _load(folder)
  return tokens_lib.encode(documents, tokenizer, recipe._replace(template=own), kind)


@functools.cache
def _load(folder: str) -> tuple[Tokenizer, Template | None]:
  from gptjax.tokenizers import store, template

  tokenizer = store.load(epath.Path(folder))
  return tokenizer, template.load(epath.Path(folder), tokenizer)
