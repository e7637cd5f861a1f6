"""A task's documents as ids, in memory: what packing and shards read and write.

A document is [start] + tokens + [end], one after another in flat arrays of uint16, or
of uint32 for vocabularies above 65,536. Conversations and labels are documents too,
written as `fit` says; beside their ids lie the extras, as many float32: `weights` of
each id as a target, and `scores`, the numbers that labels hold. Text has none.
Letters: N documents, P parts.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gptjax.data.fit import PLAIN, Recipe, fit
from gptjax.tokenizers.store import plain
from gptjax.tokenizers.turns import text_of
from gptjax.words import Conversation, Label, Mistake, Task, Text, Tokenizer

EXTRAS = {'text': (), 'conversation': ('weights',), 'label': ('weights', 'scores')}
_TYPES = {'text': Text, 'conversation': Conversation, 'label': Label}

Document = str | Conversation | Label  # A str is a Text with its control lines.


class Tokens(NamedTuple):
  """Documents of one task; `part(k)` gives the ids of part k, checked at first use."""

  name: str
  digest: str  # sha256 (hex) of what decides the ids.
  lengths: np.ndarray  # [N] int64 ids of each document, start and end included.
  offsets: np.ndarray  # [N] int64 where each begins in its part.
  parts: np.ndarray  # [N] int32 the part of each document.
  part: Callable[[int], np.ndarray]
  bytes: float  # UTF-8 bytes of all texts, times their weights.
  extras: Mapping[str, Callable[[int], np.ndarray]] = {}  # By name, like `part`.
  cut: int = 0  # Documents that were cut to fit a row.
  left: int = 0  # Examples that are no document: they do not fit, or hold no answer.

  @property
  def targets(self) -> int:
    """Targets of all documents: their tokens and ends, without the starts."""
    return int(self.lengths.sum()) - len(self.lengths)


class Coded(NamedTuple):
  """Documents one after another."""

  ids: np.ndarray  # [I]
  lengths: np.ndarray  # [N] int64
  bytes: float  # UTF-8 bytes of the texts, times their weights.
  extras: Mapping[str, np.ndarray] = {}  # [I] float32 each.
  cut: int = 0
  left: int = 0


def id_type(tokenizer: Tokenizer) -> np.dtype:
  """The smallest type that holds the ids."""
  return np.dtype(np.uint16 if tokenizer.size <= 1 << 16 else np.uint32)


def data_digest(task: Task, tokenizer: Tokenizer, recipe: Recipe = PLAIN) -> str:
  """sha256 (hex) over the digests of the task's data, the tokenizer and the recipe.

  Raises:
    Mistake: conversations, and the recipe has no template.
  """
  said = [task.digest, tokenizer.digest]
  if task.kind == 'conversation':
    if recipe.template is None:
      raise Mistake(f'{task.name} holds conversations: they need a template.')
    roles = json.dumps(dict(recipe.roles), sort_keys=True)
    said += [recipe.template.digest, roles, str(recipe.length)]
  elif task.kind == 'label':
    said += ['label', str(recipe.length)]
  return hashlib.sha256('/'.join(said).encode()).hexdigest()


def encode(
  documents: Iterable[Document],
  tokenizer: Tokenizer,
  recipe: Recipe = PLAIN,
  kind: str = 'text',
) -> Coded:
  """Documents of one kind as ids, one after another.

  Raises:
    Mistake: the tokenizer gives an id outside its vocabulary.
  """
  start, end = np.array([tokenizer.start]), np.array([tokenizer.end])
  runs, lengths, size, cut, left = [], [], 0, 0, 0
  extras: dict[str, list[np.ndarray]] = {name: [] for name in EXTRAS[kind]}
  for document in documents:
    if isinstance(document, str):
      ids = tokenizer.encode(document)
      runs += [start, ids, end]
      lengths.append(len(ids) + 2)
      size += len(document.encode())
      continue
    fitted = fit(document, tokenizer, recipe)
    if fitted.encoded is None:
      left += 1
      continue
    runs.append(fitted.encoded.ids)
    lengths.append(len(fitted.encoded.ids))
    size += fitted.bytes
    cut += fitted.cut
    for name, values in extras.items():
      values.append(getattr(fitted.encoded, name))
  flat = np.concatenate(runs) if runs else np.zeros(0, np.int64)
  if len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < tokenizer.size:
    raise Mistake(
      f'tokenizer {tokenizer.name}: it gave ids from {flat.min()} to {flat.max()}, '
      f'but has {tokenizer.size}.'
    )
  none = np.zeros(0, np.float32)
  return Coded(
    flat.astype(id_type(tokenizer)),
    np.array(lengths, np.int64),
    size,
    {name: np.concatenate([none, *values]) for name, values in extras.items()},
    cut,
    left,
  )


def document(task: Task, index: int) -> Document:
  """One example: a conversation, a label, or a text with its control lines.

  Raises:
    Mistake: the example is not of the task's kind, or of one that has no tokens.
  """
  example = task.example(index)
  if not isinstance(example, _TYPES.get(task.kind, ())):
    raise Mistake(
      f'task {task.name}: example {index} is of type {type(example).__name__}; '
      f'training on tokens takes {", ".join(t.__name__ for t in _TYPES.values())}.'
    )
  if isinstance(example, Text):
    return plain(text_of(example.text, example.control))
  return example


def size_of(document: Document) -> int:
  """UTF-8 bytes of all its texts."""
  if isinstance(document, Conversation):
    return sum(len(plain(turn.text).encode()) for turn in document.turns)
  text = document if isinstance(document, str) else plain(document.text)
  return len(text.encode())


def in_memory(task: Task, tokenizer: Tokenizer, recipe: Recipe = PLAIN) -> Tokens:
  """Tokenizes every document now, into one array."""
  digest = data_digest(task, tokenizer, recipe)
  documents = (document(task, index) for index in range(len(task)))
  found = encode(documents, tokenizer, recipe, task.kind)
  return make_tokens(
    task.name,
    digest,
    [found.lengths],
    lambda _: found.ids,
    found.bytes,
    {name: lambda _, values=values: values for name, values in found.extras.items()},
    found.cut,
    found.left,
  )


def make_tokens(
  name: str,
  digest: str,
  lengths: Sequence[np.ndarray],
  part: Callable[[int], np.ndarray],
  size: float,
  extras: Mapping[str, Callable[[int], np.ndarray]] | None = None,
  cut: int = 0,
  left: int = 0,
) -> Tokens:
  """Tokens from the document lengths of each part."""
  parts = np.repeat(np.arange(len(lengths), dtype=np.int32), [len(x) for x in lengths])
  return Tokens(
    name=name,
    digest=digest,
    lengths=np.concatenate(lengths).astype(np.int64),
    offsets=np.concatenate([np.cumsum(x) - x for x in lengths]).astype(np.int64),
    parts=parts,
    part=functools.cache(part),
    bytes=size,
    extras={name: functools.cache(load) for name, load in (extras or {}).items()},
    cut=cut,
    left=left,
  )


def check_enough(tokens: Tokens, length: int) -> None:
  """Raises a Mistake, with the cure, for text of less than one row of `length` tokens.

  Of conversations and labels one that fits is enough: rows are not filled up with parts
  of them.
  """
  if tokens.extras and not len(tokens.lengths):
    raise Mistake(
      f'{tokens.name}: none of {tokens.left:,} conversations is left: they hold no '
      f'answer that weighs (c.mixture.roles), or none that fits a row of {length} '
      'tokens with what it answers (c.mixture.length).'
    )
  if len(tokens.lengths) and (tokens.extras or tokens.targets >= length):
    return
  shorter = 1 << max(tokens.targets, 1).bit_length() - 1
  raise Mistake(
    f'{tokens.name}: a split of {tokens.targets:,} tokens (documents: '
    f'{len(tokens.lengths):,}) is less than one row of {length}: shorten the rows '
    f'(--config.mixture.length={shorter}), take more text, or cut it otherwise '
    '(document=paragraph or line, by=position, val_path=FILE of the task).'
  )
