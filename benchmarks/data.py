"""Finished batches a second on one core, from memory-mapped shards, and its parts.

  python -m benchmarks.data [--length=1024] [--mean=300] [--packing=best_fit]

Documents have log-normal lengths around the mean (in tokens), ids of a vocabulary of
50,000. The thread that makes batches ahead is not used: one core does all the work.
"""
# ruff: noqa: D102

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

from gptjax.data import pack, rows, shards, tokens
from gptjax.words import Text

LENGTH = flags.DEFINE_integer('length', 0, 'Tokens of a row; 0: several.')
MEAN = flags.DEFINE_integer('mean', 0, 'Tokens of a document; 0: several.')
PACKING = flags.DEFINE_string('packing', '', 'best_fit or concat; empty: both.')
TOTAL = flags.DEFINE_integer('tokens', 20_000_000, 'Tokens of the corpus.')
BATCH = 32_768  # Tokens of a batch.


class Numbers:
  """A task whose documents are seeds, for `Draws`."""

  name, kind = 'numbers', 'text'

  def __init__(self, count: int, mean: int):
    self.count, self.mean = count, mean
    self.digest = hashlib.sha256(f'{count}/{mean}'.encode()).hexdigest()

  def __len__(self) -> int:
    return self.count

  def example(self, index: int) -> Text:
    return Text(f'{index} {self.mean}')


class Draws:
  """A tokenizer that draws as many ids as the text says."""

  name, size, start, end, digest = 'draws', 50_002, 50_000, 50_001, 'draws'
  files: dict[str, bytes] = {}
  controls: dict[str, int] = {}

  def encode(self, text: str) -> np.ndarray:
    seed, mean = map(int, text.split())
    rng = np.random.default_rng(seed)
    length = int(np.clip(rng.lognormal(np.log(mean) - 0.5, 1.0), 2, 1 << 20))
    return rng.integers(0, 50_000, length, dtype=np.int32)

  def decode(self, ids: Any) -> str:
    return ''

  def piece(self, index: int) -> bytes:
    return b''

  def save(self, folder: Any) -> None: ...


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
  begin = time.perf_counter()
  result = function()
  return time.perf_counter() - begin, result


def measure(corpus: tokens.Tokens, length: int, packing: str) -> dict[str, float]:
  """Million tokens a second of each part, and of all together."""
  ready = rows.make_rows({'corpus': (corpus, 1.0)}, length=length, packing=packing)
  windows = max(4, int(8e6 / (ready.units * min(length, corpus.lengths.mean()))))
  plan, counts = timed(lambda: [ready.window(n).rows for n in range(windows)])
  batch, used = BATCH // length, sum(counts)
  ready = rows.make_rows({'corpus': (corpus, 1.0)}, length=length, packing=packing)
  seconds = {'read': 0.0, 'fill': 0.0}
  place, all_rows, real = rows.ORIGIN, 0, 0.0
  begin = time.perf_counter()
  for first in range(0, used - batch, batch):
    place = rows.seek(ready, first, place)
    made = rows.read(ready, first, first + batch, place)
    all_rows += batch
    real += float(made['weights'].sum())
  whole = time.perf_counter() - begin
  for first in range(0, ready.window(0).rows - batch, batch):
    window = ready.window(0)
    a, b = window.first[first], window.first[first + batch]
    where = window.part[a:b], window.start[a:b], window.stop[a:b]
    took, ids = timed(lambda where=where: rows.slices(ready.part, *where))
    seconds['read'] += took
    count = np.diff(window.first[first : first + batch + 1])
    took, _ = timed(lambda ids=ids, n=count: pack.fill(ids, n, length))
    seconds['fill'] += took
  part = (ready.window(0).rows - batch) // batch * batch * length
  return {
    'all': all_rows * length / whole / 1e6,
    'plan': used * length / plan / 1e6,
    'slice': part / seconds['read'] / 1e6,
    'fill': part / seconds['fill'] / 1e6,
    'padding': 1 - real / (all_rows * length),
  }


def main(argv: list[str]) -> None:
  del argv
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
  print('million tokens a second on one core; padding is a share of all places')
  print('mean length  packing   |    all |   plan  slice   fill | padding')
  with tempfile.TemporaryDirectory() as folder:
    for mean in [MEAN.value] if MEAN.value else [100, 300, 1000]:
      task = Numbers(TOTAL.value // mean, mean)
      corpus = shards.tokenize(task, Draws(), folder, workers=0, shard=200_000)
      took, _ = timed(lambda c=corpus: [c.part(n) for n in range(c.parts[-1] + 1)])
      for length in [LENGTH.value] if LENGTH.value else [256, 1024, 4096]:
        for packing in [PACKING.value] if PACKING.value else ['best_fit', 'concat']:
          found = measure(corpus, length, packing)
          print(
            f'{mean:4} {length:6}  {packing:9} | {found["all"]:6.1f} | '
            f'{found["plan"]:6.1f} {found["slice"]:6.1f} {found["fill"]:6.1f} | '
            f'{found["padding"]:.2%}'
          )
      size = corpus.lengths.sum() * 2 / 1e6
      print(f'{corpus.parts[-1] + 1} shards, {size:.0f} MB: checked in {took:.2f} s')


if __name__ == '__main__':
  app.run(main)
