"""A task's documents as ids, in memory: what packing and shards read and write.

A document is [start] + tokens + [end], one after another in flat arrays of uint16, or
of uint32 for vocabularies above 65,536. Letters: N documents, P parts.
"""

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from gptjax.tokenizers.store import plain
from gptjax.words import Mistake, Task, Text, Tokenizer


class Tokens(NamedTuple):
  """Documents of one task; `part(k)` gives the ids of part k, checked at first use."""

  name: str
  digest: str  # sha256 (hex) of what decides the ids.
  lengths: np.ndarray  # [N] int64 ids of each document, start and end included.
  offsets: np.ndarray  # [N] int64 where each begins in its part.
  parts: np.ndarray  # [N] int32 the part of each document.
  part: Callable[[int], np.ndarray]
  bytes: int  # UTF-8 bytes of all texts.

  @property
  def targets(self) -> int:
    """Targets of all documents: their tokens and ends, without the starts."""
    return int(self.lengths.sum()) - len(self.lengths)


def id_type(tokenizer: Tokenizer) -> np.dtype:
  """The smallest type that holds the ids."""
  return np.dtype(np.uint16 if tokenizer.size <= 1 << 16 else np.uint32)


def data_digest(task: Task, tokenizer: Tokenizer) -> str:
  """sha256 (hex) over the digests of the task's data and of the tokenizer."""
  return hashlib.sha256(f'{task.digest}/{tokenizer.digest}'.encode()).hexdigest()


def encode(
  texts: Iterable[str], tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray, int]:
  """Documents one after another: ids [I], their lengths [N], UTF-8 bytes of the texts.

  Raises:
    Mistake: the tokenizer gives an id outside its vocabulary.
  """
  start, end = np.array([tokenizer.start]), np.array([tokenizer.end])
  runs, lengths, size = [], [], 0
  for text in texts:
    ids = tokenizer.encode(text)
    runs += [start, ids, end]
    lengths.append(len(ids) + 2)
    size += len(text.encode())
  flat = np.concatenate(runs) if runs else np.zeros(0, np.int64)
  if len(flat) and not 0 <= int(flat.min()) <= int(flat.max()) < tokenizer.size:
    raise Mistake(
      f'tokenizer {tokenizer.name}: it gave ids from {flat.min()} to {flat.max()}, '
      f'but has {tokenizer.size}.'
    )
  return flat.astype(id_type(tokenizer)), np.array(lengths, np.int64), size


def document(task: Task, index: int) -> str:
  """The text of one example, as valid Unicode.

  Raises:
    Mistake: the example is no text.
  """
  example = task.example(index)
  if not isinstance(example, Text):
    raise Mistake(
      f'task {task.name}: example {index} is of type {type(example).__name__}; '
      'next-token training takes Text.'
    )
  return plain(example.text)


def in_memory(task: Task, tokenizer: Tokenizer) -> Tokens:
  """Tokenizes every document now, into one array."""
  texts = (document(task, index) for index in range(len(task)))
  ids, lengths, size = encode(texts, tokenizer)
  digest = data_digest(task, tokenizer)
  return make_tokens(task.name, digest, [lengths], lambda _: ids, size)


def make_tokens(
  name: str,
  digest: str,
  lengths: Sequence[np.ndarray],
  part: Callable[[int], np.ndarray],
  size: int,
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
  )


def check_enough(tokens: Tokens, length: int) -> None:
  """Raises a Mistake, with the cure, for less than one row of `length` tokens."""
  if len(tokens.lengths) and tokens.targets >= length:
    return
  shorter = 1 << max(tokens.targets, 1).bit_length() - 1
  raise Mistake(
    f'{tokens.name}: a split of {tokens.targets:,} tokens (documents: '
    f'{len(tokens.lengths):,}) is less than one row of {length}: shorten the rows '
    f'(--config.mixture.length={shorter}), take more text, or cut it otherwise '
    '(document=paragraph or line, by=position, val_path=FILE of the task).'
  )
