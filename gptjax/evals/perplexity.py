"""How well a model predicts the texts of a task.

Every token counts once, ends of documents included, the first of a document predicted
from the start token; documents longer than the context are read in consecutive pieces.
In conversations tokens count as much as they weigh, the assistant's alone if nothing
else is said, and so do the bytes of the texts.
Bits per byte is the sum of nats / ln 2 over the UTF-8 bytes of the texts, so models
with different tokenizers can be compared (Gao et al. 2020, The Pile, section 3.1).
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import sharding
from gptjax.data.loader import eval_batches
from gptjax.evals import _scores
from gptjax.models.loss import cross_entropy
from gptjax.words import (
  Batch,
  Evaluator,
  Mistake,
  Model,
  Params,
  Scores,
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
  split = eval_batches(
    _scores.first(task, limit),
    tokenizer,
    length,
    batch_size,
    template=template,
    roles=roles,
    shards=None if limit else shards,
    say=say,
  )
  score = jax.jit(functools.partial(_score, model))

  def look(weights: Params) -> Scores:
    found = np.concatenate(list(_scores.behind(score, weights, split.batches)), 1)
    nats, correct, count = found.astype(np.float64)[:, found[2] > 0]  # Of rows.

    def total(values: np.ndarray, counts: np.ndarray) -> float:
      return math.fsum(values * counts)

    def nats_per_token(counts: np.ndarray) -> float:
      return total(nats, counts) / total(count, counts)

    def bits_per_byte(counts: np.ndarray) -> float:
      # The bytes of a row are not known; its share of them is taken for that of tokens.
      tokens_per_byte = math.fsum(count) / split.bytes
      return nats_per_token(counts) / math.log(2) * tokens_per_byte

    def accuracy(counts: np.ndarray) -> float:
      return total(correct, counts) / total(count, counts)

    made = (nats_per_token, bits_per_byte, accuracy)
    return Scores(len(count), dict(zip(NAMES, made, strict=True)))

  return _scores.evaluator(look, every, NAMES)


def _score(model: Model, weights: Params, batch: Batch) -> jax.Array:
  """Nats, right guesses and tokens, summed over each row of a batch [B, T]: [3, B]."""
  hidden, _, _ = model.hidden(weights, batch)
  head: Any = functools.partial(model.heads['lm'], weights)
  targets, counts = jnp.asarray(batch['targets']), jnp.asarray(batch['weights'])
  loss = cross_entropy(head, jnp.asarray(hidden), targets, counts)

  def total(values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(counts > 0, values * counts, 0), 1)

  sums = jnp.stack([total(loss.nats), total(loss.correct), jnp.sum(counts, 1)])
  return sharding.shard(sums, None, None)
