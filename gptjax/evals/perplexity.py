"""How well a model predicts the texts of a task.

Every token counts once, ends of documents included, the first of a document predicted
from the start token; documents longer than the context are read in consecutive pieces.
In conversations tokens count as much as they weigh, the assistant's alone if nothing
else is said, and so do the bytes of the texts.
Bits per byte is the sum of nats / ln 2 over the UTF-8 bytes of the texts, so models
with different tokenizers can be compared (Gao et al. 2020, The Pile, section 3.1).
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gptjax.data.loader import eval_batches
from gptjax.models.loss import cross_entropy
from gptjax.words import (
  Batch,
  Evaluator,
  Mistake,
  Model,
  Params,
  Task,
  Template,
  Tokenizer,
)

KINDS = ('text', 'conversation')
NAMES = ('nats_per_token', 'bits_per_byte', 'accuracy')


def perplexity(
  *,
  model: Model,
  tokenizer: Tokenizer,
  task: Task,
  length: int,
  batch_size: int,
  every: int = 200,
  limit: int | None = None,
  template: Template | None = None,
  roles: Mapping[str, float] | None = None,
  shards: Any = None,
  say: Callable[[str], None] | None = None,
) -> Evaluator:
  """Numbers of a task's texts: nats_per_token, bits_per_byte and accuracy.

  They are tokenized and packed now, once for all evaluations. The same weights give the
  same numbers to the bit.

  Args:
    model: with a head 'lm'.
    tokenizer: of the model.
    task: texts, such as the validation split of a training task.
    length: tokens of context.
    batch_size: rows of a batch.
    every: steps between two evaluations.
    limit: documents that are read, from the first; None: all.
    template: how conversations are written.
    roles: weights of their turns.
    shards: folder of the tokenized corpora, see data/shards.py.
    say: takes lines for the user.

  Raises:
    Mistake: less than a row of tokens, a limit below 1, or a task of other kinds.
  """
  if task.kind not in KINDS:
    raise Mistake(
      f'perplexity reads tasks of kind {" and ".join(KINDS)}; {task.name} is of kind '
      f'{task.kind}.'
    )
  if limit is not None and limit < 1:
    raise Mistake(f'limit={limit}: allowed is at least 1 document.')
  split = eval_batches(
    task if limit is None else _first(task, limit),
    tokenizer,
    length,
    batch_size,
    template=template,
    roles=roles,
    shards=None if limit else shards,
    say=say,
  )
  score = jax.jit(functools.partial(_score, model))

  def run(weights: Params) -> dict[str, float]:
    found, ahead = [], collections.deque()
    for batch in split.batches:
      ahead.append(score(weights, batch))
      if len(ahead) > 2:  # More at once fill memory, and can lock virtual devices.
        found.append(jax.device_get(ahead.popleft()))
    found += jax.device_get(list(ahead))
    nats, correct, count = map(math.fsum, zip(*found, strict=True))
    bits = nats / math.log(2) / split.bytes
    return dict(zip(NAMES, (nats / count, bits, correct / count), strict=True))

  return Evaluator(run, every, NAMES)


def _score(
  model: Model, weights: Params, batch: Batch
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Of a batch [B, T]: nats, right guesses and tokens, summed."""
  hidden, _, _ = model.hidden(weights, batch)
  head: Any = functools.partial(model.heads['lm'], weights)
  targets, counts = jnp.asarray(batch['targets']), jnp.asarray(batch['weights'])
  loss = cross_entropy(head, jnp.asarray(hidden), targets, counts)

  def total(values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(counts > 0, values * counts, 0))

  return total(loss.nats), total(loss.correct), jnp.sum(counts)


def _first(task: Task, limit: int) -> Task:
  """The first documents of a task."""
  return _First(task.name, task.kind, f'{task.digest}/{limit}', task, limit)


@dataclasses.dataclass
class _First:
  name: str
  kind: str
  digest: str
  task: Task
  limit: int

  def __len__(self) -> int:
    return min(self.limit, len(self.task))

  def example(self, index: int) -> Any:
    return self.task.example(index)
