"""Conversations of a file: OpenAI's messages, ShareGPT's, Alpaca's."""

import functools
from collections.abc import Mapping
from typing import Any

from gptjax.lookup import nearest
from gptjax.tasks.examples import DROP, file_task
from gptjax.tasks.instructions import conversation_of
from gptjax.tasks.split import Documents
from gptjax.words import Conversation, Mistake, Turn

# By the field that shows it: what the turns call their side and what it says.
FORMATS = {'messages': 'openai', 'conversations': 'sharegpt', 'instruction': 'alpaca'}
ROLES = {
  'system': 'system', 'developer': 'system',
  'user': 'user', 'human': 'user',
  'assistant': 'assistant', 'gpt': 'assistant', 'model': 'assistant',
  'chatgpt': 'assistant', 'bing': 'assistant', 'bard': 'assistant',
  'function_call': 'assistant',
  'tool': 'tool', 'function': 'tool', 'observation': 'tool',
}  # fmt: skip


def conversations(
  path: str,
  format: str | None = None,
  split: str = 'train',
  splits: Mapping[str, float] | None = None,
  val_path: str | None = None,
  test_path: str | None = None,
  control: Mapping[str, str] | None = None,
  control_drop: float = DROP,
  on_bad: str = 'error',
  data: str | None = None,
  where: str = '',
) -> Documents:
  """The task of conversations, a record each.

  path: JSON lines, a JSON array or Parquet; `.gz` and patterns as of the task `text`.
  format: openai, a list `messages` of {role, content} (and a weight, if there is one);
    sharegpt, a list `conversations` of {from, value}; alpaca, the fields instruction,
    input and output; None: told from the fields of each record.
  split: train, val, test or all, by hash of what is said before the first answer.
  splits: fractions of val and test; 0 is none.
  val_path, test_path: files of their own.
  control, control_drop: fields of the records, see examples.make_task.
  on_bad: error, or skip.
  data: the folder of data sets.
  where: the config key of these arguments.

  Raises:
    Mistake: no such file, a record that is no conversation (file and line), an empty
      split.
  """
  if format is not None and format not in FORMATS.values():
    raise Mistake(f'format={format!r}: {nearest(str(format), FORMATS.values())}')
  return file_task(
    path,
    'conversation',
    functools.partial(_conversation, format),
    split=split,
    splits=splits,
    val_path=val_path,
    test_path=test_path,
    on_bad=on_bad,
    data=data,
    where=where,
    control=control,
    control_drop=control_drop,
  )


def _conversation(format: str | None, record: Mapping[str, Any]) -> Conversation:
  """A record as a conversation; ValueError says what is wrong with it."""
  fields = [f for f, name in FORMATS.items() if f in record and format in (None, name)]
  if not fields:
    wanted = [f for f, name in FORMATS.items() if format in (None, name)]
    raise ValueError(
      f'no field {" or ".join(wanted)}; fields: {", ".join(record) or "none"}'
    )
  if fields[0] == 'instruction':
    return conversation_of('instruction', 'input', 'output', '', record)
  return Conversation(turns_of(record[fields[0]], fields[0]))


def turns_of(found: Any, field: str = 'messages') -> tuple[Turn, ...]:
  """A list of {role, content} or {from, value} as turns.

  Raises:
    ValueError: it is none; which turn is wrong, and how.
  """
  if not isinstance(found, list) or not found:
    raise ValueError(f'field {field!r} is no list of turns')
  return tuple(_turn(n, turn) for n, turn in enumerate(found, 1))


def _turn(number: int, turn: Any) -> Turn:
  if not isinstance(turn, Mapping):
    raise ValueError(f'turn {number} is no object')
  side = turn.get('role', turn.get('from'))
  if side not in ROLES:
    raise ValueError(
      f'turn {number} has role {side!r}: {nearest(str(side), ROLES)[:-1]}'
    )
  if turn.get('tool_calls') or turn.get('function_call'):
    raise ValueError(
      f'turn {number} calls tools in fields of its own: only text is read'
    )
  text = turn.get('content', turn.get('value'))
  if isinstance(text, list):  # Parts, of which pictures are others.
    kinds = {part.get('type') if isinstance(part, Mapping) else None for part in text}
    if kinds != {'text'}:
      raise ValueError(f'turn {number} has parts that are no text')
    text = ''.join(str(part.get('text', '')) for part in text)
  if not isinstance(text, str) or not text.strip():
    raise ValueError(f'turn {number} says nothing')
  weight = turn.get('weight', 1.0)
  number_like = isinstance(weight, int | float) and not isinstance(weight, bool)
  if not number_like or not 0 <= weight < float('inf'):
    raise ValueError(f'turn {number} has weight {weight!r}: a number from 0 on')
  return Turn(ROLES[side], text, float(weight))
