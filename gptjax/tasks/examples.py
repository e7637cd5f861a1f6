"""From records to a task: what the tasks of one example a record share.

A task's own file says how a record becomes an example; here it is read once for the
splits, and what its fields say of control is put to it.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gptjax.lookup import nearest
from gptjax.sources import jsonl, names, parquet, table
from gptjax.sources.records import Records
from gptjax.tasks import split as splitting
from gptjax.tasks.find import locate, of_split
from gptjax.tasks.split import Documents
from gptjax.words import Conversation, Example, Label, Mistake, Text, Turn

Make = Callable[[Mapping[str, Any]], Example]  # Raises ValueError with what is wrong.
DROP = 0.1  # Share of the training examples that are shown without a control.


def make_task(
  name: str,
  kind: str,
  records: Records,
  make: Make,
  *,
  split: str,
  shares: Mapping[str, float],
  by: str = 'hash',
  on_bad: str = 'error',
  where: str = '',
  control: Mapping[str, str] | None = None,
  control_drop: float = DROP,
  classify: Callable[[Mapping[str, Any]], str] | None = None,
  answers: Callable[[Mapping[str, Any]], list[str]] | None = None,
  **further: Any,
) -> Documents:
  """The Task over one split of records.

  What was asked decides the split, not the answer to it: examples that ask the same are
  on one side.

  Args:
    name: of the data, for messages.
    kind: of the examples.
    records: one example each.
    make: from a record to its example.
    split: train, val, test or all.
    shares: fractions of val and test.
    by: hash; or class, by hash within each class of `classify`.
    on_bad: error, or skip.
    where: the config key of the task, for messages.
    control: names of what is asked for, with the fields of the records that say it.
    control_drop: share of the training examples in which each of them is left out.
    classify: the class of a record, for by='class'.
    answers: all right answers of a record.
    **further: fields of Documents.

  Raises:
    Mistake: a bad record, with where it is; an empty split; a wrong argument.
  """
  check_control(control, control_drop)
  splitting.check_split(split, shares, name)
  whole = functools.partial(_read, records, make, dict(control or {}))
  found = splitting.survey(
    records,
    lambda i: _content(whole(i)),
    on_bad,
    lambda i: _content(_question(whole(i))),
  )
  if not len(found.indices):
    raise Mistake(f'{name} holds no example ({found.skipped} bad ones skipped).')
  classes = None
  if by == 'class' and classify is not None:
    classes = np.array([classify(records[int(i)]) for i in found.indices])
  chosen = splitting.choose(found, split, shares, by, name, _cure(where), classes)
  read = whole
  if control and split == 'train':
    read = functools.partial(dropped, whole, control_drop)
  return Documents(
    name=name,
    kind=kind,
    indices=found.indices[chosen],
    read=read,
    place=records.where,
    digest=splitting.digest(
      digest_kind(kind, control, control_drop, split), found.prints[chosen]
    ),
    skipped=records.skipped + found.skipped,
    answers=functools.partial(_answers, records, answers) if answers else None,
    **further,
  )


def file_task(
  path: str,
  kind: str,
  make: Make,
  *,
  split: str,
  splits: Mapping[str, float] | None,
  val_path: str | None,
  test_path: str | None,
  on_bad: str,
  data: str | None,
  **settings: Any,
) -> Documents:
  """`make_task` over the records of files, or of a set of the folder of data sets."""
  name, shares = path, splitting.fractions(splits)
  path, split, shares = of_split(path, split, shares, val_path, test_path)
  records = open_records(path, data, on_bad)
  return make_task(
    name, kind, records, make, split=split, shares=shares, on_bad=on_bad, **settings
  )


def open_records(path: str, data: str | None, on_bad: str) -> Records:
  """Records of JSON lines, Parquet or tables, as the names of the files say.

  path: as of `find.locate`.

  Raises:
    Mistake: no such file, or bad input.
  """
  files = locate(path, data)
  kinds = {names.format_of(file) for file in files}
  if kinds == {'jsonl'}:
    return jsonl.jsonl(files, on_bad)
  if kinds == {'parquet'}:
    return parquet.parquet(files, on_bad)
  return table.table(files, on_bad)


def check_control(control: Mapping[str, str] | None, drop: float) -> None:
  """Raises Mistake for a control that is no dict of names and fields, or a share."""
  fine = isinstance(control, Mapping | None) and all(
    isinstance(k, str) and isinstance(v, str) for k, v in (control or {}).items()
  )
  if not fine:
    raise Mistake(f"control={control!r}: allowed is dict(style='FIELD').")
  if isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop <= 1:
    raise Mistake(f'control_drop={drop!r}: a share from 0 to 1.')


def read_control(
  record: Mapping[str, Any], control: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
  """What the fields of a record say of control.

  Raises:
    ValueError: a field that is missing or empty, or holds no words.
  """
  return tuple((name, _words(record, control[name])) for name in sorted(control))


def _words(record: Mapping[str, Any], field: str) -> str:
  """A field's value in one line; of a list, its parts with commas."""
  value = field_of(record, field)
  parts = value if isinstance(value, list) else [value]
  if not all(isinstance(p, str | int | float) for p in parts):
    raise ValueError(f'field {field!r} holds no words but {type(value).__name__}')
  words = ' '.join(', '.join(map(str, parts)).split())
  if not words:
    raise ValueError(f'field {field!r} is empty')
  return words


def field_of(record: Mapping[str, Any], field: str) -> Any:
  """The value of a field.

  Raises:
    ValueError: there is none.
  """
  value = record.get(field)
  if value is None:
    fields = nearest(field, record) if record else 'The record is empty.'
    raise ValueError(f'no field {field!r}: {fields}'.rstrip('.'))
  return value


def ask(
  question: str, answer: str, instruction: str = '', role: str = 'system'
) -> Conversation:
  """A question and its answer; the instruction is a system's turn, or before it."""
  turns = [Turn('system', instruction)] if instruction and role == 'system' else []
  if instruction and role == 'user':
    question = f'{instruction}\n\n{question}'
  return Conversation((*turns, Turn('user', question), Turn('assistant', answer)))


def check_role(role: str) -> None:
  """Raises Mistake unless an instruction can be a turn, or part of one, of `role`."""
  if role not in ('system', 'user'):
    raise Mistake(f'role={role!r}: allowed are system and user.')


def text_of(record: Mapping[str, Any], field: str) -> str:
  """The text of a field, without white space around it.

  Raises:
    ValueError: there is none, or it is no text or an empty one.
  """
  value = field_of(record, field)
  if not isinstance(value, str):
    raise ValueError(f'field {field!r} is no text but {type(value).__name__}')
  if not value or value.isspace():
    raise ValueError(f'field {field!r} is empty')
  return value.strip()


def _read(records: Records, make: Make, control: Mapping[str, str], index: int) -> Any:
  record = records[index]
  example: Any = make(record)
  if not control:
    return example
  return example._replace(control=read_control(record, control))


def _answers(
  records: Records, answers: Callable[[Mapping[str, Any]], list[str]], index: int
) -> list[str]:
  return answers(records[index])


def digest_kind(
  kind: str, control: Mapping[str, str] | None, drop: float, split: str
) -> str:
  """The kind of a split's documents as its digest has it: with what is dropped."""
  return f'{kind}/drop={drop}' if control and split == 'train' else kind


def dropped(read: Callable[[int], Any], drop: float, index: int) -> Any:
  """The example without those of its controls that its hash says."""
  example = read(index)
  content = _content(example)
  kept = [
    pair for pair in example.control if draw(pair[0].encode() + b'\n' + content) >= drop
  ]
  return example._replace(control=tuple(kept))


def draw(data: bytes) -> float:
  """A number in [0, 1) that hangs on the bytes alone."""
  return int.from_bytes(hashlib.sha256(data).digest()[:8], 'big') / 2.0**64


def _content(example: Example) -> bytes:
  # Half of a surrogate pair, which JSON can say, cannot be encoded: a ValueError too.
  return json.dumps(example, ensure_ascii=False).encode()


def _question(example: Example) -> Example:
  """What is there before the first answer, control left out."""
  match example:
    case Text() | Label():
      return Text(example.text)
    case Conversation():
      roles = [turn.role for turn in example.turns]
      end = roles.index('assistant') if 'assistant' in roles else len(roles)
      return Conversation(example.turns[:end] or example.turns)
  return example


def _cure(where: str) -> str:
  key = f'--config.{where.removeprefix("c.")}.' if where else ''
  return f'try {key}splits or a file of its own, {key}val_path=FILE'
