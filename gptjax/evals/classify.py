"""How well a model tells the classes of a task: by its class head, or in words.

In words, the label that the model finds likeliest after the prompt is its guess: the
sum of log-probabilities of the label's tokens and of the token that ends the answer.

Letters: M prompts at a time, T tokens of a prompt, L labels, K tokens of a label.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import sharding
from gptjax.data.loader import eval_batches
from gptjax.evals import _confusion, _scores
from gptjax.models.loss import cross_entropy
from gptjax.words import (
  Array,
  Batch,
  Conversation,
  Evaluator,
  Mistake,
  Model,
  Params,
  Scores,
  Task,
  Template,
  Tokenizer,
)

_TOKENS = 2048  # Of the prompts that are read at a time.


def classify(
  *,
  model: Model,
  tokenizer: Tokenizer,
  task: Task,
  length: int,
  batch_size: int,
  template: Template | None = None,
  roles: Mapping[str, float] | None = None,
  every: int = 200,
  limit: int | None = None,
  shards: Any = None,
  say: Callable[[str], None] | None = None,
) -> Evaluator:
  """Accuracy; macro precision, recall and f1, and those of each class ('f1/LABEL').

  Args:
    model: with a head 'classes' for a task of labels, 'lm' for one of conversations.
    tokenizer: of the model.
    task: texts with labels, or conversations whose last turn is a label, with `labels`.
    length: tokens of context.
    batch_size: rows of a batch, where a class head is asked.
    template: how conversations are written.
    roles: weights of their turns.
    every: steps between two evaluations.
    limit: examples that are read, from the first; None: all.
    shards: folder of the tokenized corpora.
    say: takes lines for the user.

  Raises:
    Mistake: a task without labels, of numbers or of another kind, or a model without
      the head.
  """
  labels = tuple(getattr(task, 'labels', ()))
  if task.kind not in ('label', 'conversation') or not labels:
    raise Mistake(
      f'classify wants a task of labels, or of conversations with labels; {task.name} '
      f'is of kind {task.kind} and has {len(labels)}.'
    )
  part = _scores.first(task, limit)
  if task.kind == 'label':
    split = eval_batches(
      part,
      tokenizer,
      length,
      batch_size,
      template=template,
      roles=roles,
      shards=None if limit else shards,
      say=say,
    )
    look = _by_head(model, split.batches, labels)
  else:
    if template is None:
      raise Mistake(
        f'the tokenizer {tokenizer.name} has no template for conversations.'
      )
    look = _in_words(model, template, part, labels, length)
  return _scores.evaluator(look, every, _confusion.names(labels))


def _by_head(
  model: Model, batches: Any, labels: Sequence[str]
) -> Callable[[Params], Scores]:
  """Guesses of the class head, at the places that weigh."""
  if 'classes' not in model.heads:
    raise Mistake(
      f'classify of a task of labels wants a class head; the model has '
      f"{sorted(model.heads)}: c.model.outputs=('classes',)."
    )

  @jax.jit
  def guess(weights: Params, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    hidden, _, _ = model.hidden(weights, batch)
    found = jnp.argmax(model.heads['classes'](weights, jnp.asarray(hidden)), -1)
    parts = (found, jnp.asarray(batch['targets']), jnp.asarray(batch['weights']))
    return jax.tree.map(lambda x: sharding.shard(x, None, None), parts)

  def look(weights: Params) -> Scores:
    right, guessed = [], []
    for found, targets, counts in _scores.behind(guess, weights, batches):
      here = counts > 0
      right.append(targets[here])
      guessed.append(found[here])
    pair = np.concatenate(right), np.concatenate(guessed)
    return _confusion.scores(*pair, labels)

  return look


class _Choice(NamedTuple):
  """An example as ids: what all labels share, and how each goes on."""

  prompt: np.ndarray  # [n]
  rests: list[np.ndarray]  # [k] of each label
  weights: list[np.ndarray]  # [k] of its ids, 0 or more
  right: int


def _in_words(
  model: Model,
  template: Template,
  task: Task,
  labels: Sequence[str],
  length: int,
) -> Callable[[Params], Scores]:
  """Guesses by the likelihood of each label."""
  if 'lm' not in model.heads:
    raise Mistake(f"classify in words wants a head 'lm', not {sorted(model.heads)}.")
  choices = [_choice(template, task, i, labels, length) for i in range(len(task))]
  batches = _batches(choices, length)
  score = jax.jit(functools.partial(_label_logprobs, model))

  def look(weights: Params) -> Scores:
    guessed = np.zeros(len(choices), np.int64)
    found = _scores.behind(score, weights, (batch for _, batch in batches))
    for (members, _), logprobs in zip(batches, found, strict=True):
      guessed[members] = logprobs[: len(members)].argmax(-1)
    right = np.array([choice.right for choice in choices])
    scores = _confusion.scores(right, guessed, labels)
    return scores._replace(examples=_examples(task, guessed, labels))

  return look


def _examples(
  task: Task, guessed: np.ndarray, labels: Sequence[str]
) -> list[dict[str, Any]]:
  return [
    {
      'prompt': _turns(task, i)[-2].text,
      'answer': labels[guess],
      'references': [_turns(task, i)[-1].text],
    }
    for i, guess in enumerate(guessed.tolist())
  ]


def _turns(task: Task, index: int) -> tuple[Any, ...]:
  example: Any = task.example(index)
  return example.turns


def _choice(
  template: Template, task: Task, index: int, labels: Sequence[str], length: int
) -> _Choice:
  """An example with each of the labels as its last turn.

  A prompt too long for the context loses its beginning.
  """
  example: Any = task.example(index)
  last = example.turns[-1]
  if last.role != 'assistant' or last.text not in labels:
    raise Mistake(f'{task.name}: example {index} does not end in one of its labels.')
  whole = [
    _joined(
      template, example._replace(turns=(*example.turns[:-1], last._replace(text=t)))
    )
    for t in labels
  ]
  shared = min(int(np.flatnonzero(weights)[0]) for _, weights in whole)
  while any((ids[:shared] != whole[0][0][:shared]).any() for ids, _ in whole):
    shared -= 1
  rests = [ids[shared:] for ids, _ in whole]
  room = length - max(map(len, rests))
  if min(room, shared) < 1:
    raise Mistake(f'{task.name}: a label does not fit the context of {length} tokens.')
  return _Choice(
    whole[0][0][max(0, shared - room) : shared],
    rests,
    [weights[shared:] for _, weights in whole],
    labels.index(last.text),
  )


def _joined(
  template: Template, conversation: Conversation
) -> tuple[np.ndarray, np.ndarray]:
  """Ids of a conversation, and weights that are 0 but in its last turn."""
  parts = template.encode(conversation, {'assistant': 1.0})
  last = parts[-1].weights
  weights = np.zeros(sum(len(part.ids) for part in parts), np.float32)
  weights[-len(parts[-1].ids) :] = 1.0 if last is None else last
  return np.concatenate([part.ids for part in parts]), weights


def _batches(
  choices: Sequence[_Choice], length: int
) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
  """Examples of like length together, as arrays of few shapes; and which they are."""
  sizes = np.array([len(choice.prompt) for choice in choices])
  widths = 2 ** np.ceil(np.log2(np.maximum(sizes, 16))).astype(np.int64)
  longest = max(len(rest) for choice in choices for rest in choice.rests)
  found = []
  for width in np.unique(widths).tolist():
    members = np.flatnonzero(widths == width)
    count = max(1, _TOKENS // width)
    for begin in range(0, len(members), count):
      mine = members[begin : begin + count]
      some = [choices[i] for i in mine.tolist()]
      found.append((mine, _arrays(some, count, width, longest)))
  return found


def _arrays(
  choices: Sequence[_Choice], count: int, width: int, longest: int
) -> dict[str, np.ndarray]:
  """prompt [M, T], rests and weights [L, M, K], padded at the right with segment 0."""
  labels = len(choices[0].rests)
  prompt, seen = np.zeros((2, count, width), np.int32)
  rests, kept = np.zeros((2, labels, count, longest), np.int32)
  weights = np.zeros((labels, count, longest), np.float32)
  for row, choice in enumerate(choices):
    prompt[row, : len(choice.prompt)] = choice.prompt
    seen[row, : len(choice.prompt)] = 1
    for label, rest in enumerate(choice.rests):
      rests[label, row, : len(rest)] = rest
      kept[label, row, : len(rest)] = 1
      weights[label, row, : len(rest)] = choice.weights[label]
  return dict(prompt=prompt, seen=seen, rests=rests, kept=kept, weights=weights)


def _label_logprobs(
  model: Model, weights: Params, batch: dict[str, Array]
) -> jax.Array:
  """Log-probability (nats) of each label after each prompt: [M, L].

  The prompt is read once: every label goes on from the same cache.
  """
  prompt, rests = jnp.asarray(batch['prompt']), jnp.asarray(batch['rests'])
  M, T = prompt.shape
  L, _, K = rests.shape
  # All but the last token of a prompt, which goes before each label.
  size = jnp.sum(jnp.asarray(batch['seen']), 1)  # [M]
  before = jnp.arange(T)[None] < size[:, None] - 1
  cache = model.new_cache(M, T + K, jnp.float32)
  _, cache, _ = model.hidden(
    weights, {'tokens': prompt, 'segments': before.astype(jnp.int32)}, cache=cache
  )
  last = jnp.take_along_axis(prompt, size[:, None] - 1, 1)  # [M, 1]
  head: Any = functools.partial(model.heads['lm'], weights)
  found = []
  for label in range(L):
    inputs = jnp.concatenate([last, rests[label, :, :-1]], 1)
    kept = jnp.asarray(batch['kept'])[label]
    hidden, _, _ = model.hidden(
      weights, {'tokens': inputs, 'segments': kept}, cache=cache
    )
    factors = jnp.asarray(batch['weights'])[label]
    nats = cross_entropy(head, jnp.asarray(hidden), rests[label], factors).nats
    found.append(-jnp.sum(jnp.where(factors > 0, nats * factors, 0), 1))
  return sharding.shard(jnp.stack(found, 1), None, None)
