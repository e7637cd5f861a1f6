"""Chit-chat: 7,168 conversations of students, 12.5 million characters of English.

The embedded default data, PyPI package chitchat-dataset. Source: BYU PCC lab,
https://github.com/BYU-PCCL/chitchat-dataset, MIT licence.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gptjax.lookup import nearest
from gptjax.sources.files import Files
from gptjax.sources.jsonl import values
from gptjax.sources.package import find_file
from gptjax.sources.records import Records
from gptjax.tasks import split as splitting
from gptjax.tasks.split import Documents, Survey
from gptjax.words import Conversation, Mistake, Text, Turn

_FORMS = ('text', 'conversation')
_ROLES = ('user', 'assistant')


def chitchat(
  split: str = 'train',
  form: str = 'text',
  splits: Mapping[str, float] | None = None,
) -> Documents:
  """The task of chit-chat, in two forms that are split alike.

  form: text, a Text with a turn a line; or conversation, a Conversation of the roles
    user (who began) and assistant, without those that nobody answered (44 %).
  split: train, val, test or all, by hash of the text.
  splits: fractions of val and test; 0 is none.

  Raises:
    Mistake: the package is missing, or an unknown form or split.
  """
  if form not in _FORMS:
    raise Mistake(f'form={form!r}: {nearest(str(form), _FORMS)}')
  shares = splitting.fractions(splits)
  splitting.check_split(split, shares, 'chitchat')
  path = _path()
  stat = os.stat(path)
  texts, found = _load(path, stat.st_size, stat.st_mtime_ns)
  chosen = splitting.choose(found, split, shares, 'hash', 'chitchat', 'see splits')
  if form == 'conversation':
    chosen &= texts.turns > 1
  return Documents(
    name='chitchat',
    kind=form,
    indices=found.indices[chosen],
    read=functools.partial({'text': _text, 'conversation': _conversation}[form], texts),
    place=_place,
    digest=splitting.digest(form, found.prints[chosen]),
  )


class _Texts(NamedTuple):
  """All conversations, a turn a line, in one piece of memory."""

  data: bytes
  ends: np.ndarray  # [N + 1] int64, ends[i] to ends[i + 1] are the bytes of one.
  turns: np.ndarray  # [N] int64


def _path() -> str:
  try:
    return find_file('chitchat_dataset', 'dataset.json')
  except Mistake:
    raise Mistake(
      'data set chitchat: the package chitchat-dataset is not installed; it comes from '
      'PyPI (MIT licence): pip install chitchat-dataset.'
    ) from None


@functools.lru_cache(1)
def _load(path: str, size: int, changed: int) -> tuple[_Texts, Survey]:
  """The texts of the file; its size and time are there to key the cache."""
  del size, changed
  texts = [_turns(c['messages']) for *_, c in values(Files([path]), 0)]
  texts = [t for t in texts if t]
  data = ['\n'.join(t).encode() for t in texts]
  ends = np.cumsum([0] + [len(d) for d in data])
  turns = np.array([len(t) for t in texts], np.int64)
  records = Records(len(data), lambda i: {'text': data[i]}, _place, digest='')
  return _Texts(b''.join(data), ends, turns), splitting.survey(
    records, data.__getitem__, 'error'
  )


def _turns(messages: list[list[dict[str, Any]]]) -> list[str]:
  """One line for each turn: its messages joined, white space collapsed.

  Some messages are blank; a turn of nothing else is none, and then the turns around
  it, of one side, are one.
  """
  turns, sender = [], None
  for turn in messages:
    words = ' '.join(w for m in turn for w in m['text'].split())
    if not words:
      continue
    if turn[0]['sender'] == sender:
      turns[-1] += ' ' + words
    else:
      turns.append(words)
    sender = turn[0]['sender']
  return turns


def _string(texts: _Texts, index: int) -> str:
  return texts.data[texts.ends[index] : texts.ends[index + 1]].decode()


def _text(texts: _Texts, index: int) -> Text:
  return Text(_string(texts, index))


def _conversation(texts: _Texts, index: int) -> Conversation:
  lines = _string(texts, index).split('\n')
  return Conversation(tuple(Turn(_ROLES[i % 2], t) for i, t in enumerate(lines)))


def _place(index: int) -> str:
  return f'chitchat:{index + 1}'
