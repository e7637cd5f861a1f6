"""Classification: texts with labels, answered in words or by a class head."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gptjax.lookup import nearest
from gptjax.sources.records import Records
from gptjax.tasks import split as splitting
from gptjax.tasks.examples import DROP, ask, field_of, make_task, open_records, text_of
from gptjax.tasks.find import of_split
from gptjax.tasks.split import Documents
from gptjax.words import Conversation, Label, Mistake

FORMS = ('label', 'conversation', 'number')
BY = ('hash', 'class')


def classify(
  path: str,
  text: str = 'text',
  label: str = 'label',
  labels: Sequence[str] | Mapping[str, str] = (),
  form: str = 'label',
  instruction: str = '',
  split: str = 'train',
  splits: Mapping[str, float] | None = None,
  by: str = 'hash',
  val_path: str | None = None,
  test_path: str | None = None,
  control: Mapping[str, str] | None = None,
  control_drop: float = DROP,
  on_bad: str = 'error',
  data: str | None = None,
  where: str = '',
) -> Documents:
  """The task of telling a text's class: labels are the classes' names, in order.

  path: .csv, .tsv, .jsonl or .parquet, or several by commas; or a set of the folder of
    data sets, such as 'hatespeech'.
  text, label: fields of the records.
  labels: the values of the label in order; or a dict of names for values, in the order
    of the sorted values. Empty: those that the data hold, sorted.
  form: label, a Label for a class head; conversation, the user says the text and the
    assistant the label's name; number, a Label that is a number (regression).
  instruction: a system's turn of conversations; '': none.
  split: train, val, test or all.
  splits: fractions of val and test; 0 is none.
  by: hash of the text; or class, so that each class has its share (stratified).
  val_path, test_path: files of their own.
  control, control_drop: of conversations, see examples.make_task.
  on_bad: error, or skip.
  data: the folder of data sets.
  where: the config key of these arguments.

  Raises:
    Mistake: no such file, a record without text or with an unknown label, an empty
      split.
  """
  for key, value, allowed in (('form', form, FORMS), ('by', by, BY)):
    if value not in allowed:
      raise Mistake(f'{key}={value!r}: {nearest(str(value), allowed)}')
  if control and form != 'conversation':
    raise Mistake(f'control is of form="conversation" only, not of {form!r}.')
  shares = splitting.fractions(splits)
  path, split, shares = of_split(path, split, shares, val_path, test_path)
  records = open_records(path, data, on_bad)
  values = {} if form == 'number' else _values(records, label, labels, on_bad)
  make: Callable[[Mapping[str, Any]], Any] = functools.partial(
    {'label': _label, 'conversation': _conversation, 'number': _number}[form],
    text,
    label,
    values,
    *([instruction] if form == 'conversation' else []),
  )
  return make_task(
    path,
    'conversation' if form == 'conversation' else 'label',
    records,
    make,
    split=split,
    shares=shares,
    by=by,
    on_bad=on_bad,
    where=where,
    control=control,
    control_drop=control_drop,
    classify=functools.partial(_name, label, values) if values else None,
    labels=tuple(values.values()),
    grade=_grade if form == 'conversation' else None,
  )


def _values(
  records: Records,
  field: str,
  labels: Sequence[str] | Mapping[str, str],
  on_bad: str,
) -> dict[str, str]:
  """Names of classes by value of the label, in order."""
  if labels and isinstance(labels, Mapping):
    found = {str(value): labels[value] for value in sorted(labels, key=str)}
  elif labels:
    found = {str(value): str(value) for value in labels}
  else:
    seen = {str(records[i].get(field)) for i in range(len(records))} - {'None', ''}
    found = {value: value for value in sorted(seen)}
  if len(set(found.values())) < 2:
    raise Mistake(
      f'labels: {len(found)} classes are there ({", ".join(found) or "none"}) and at '
      f'least 2 are needed. The field of the label is label={field!r}.'
    )
  return found


def _name(field: str, values: Mapping[str, str], record: Mapping[str, Any]) -> str:
  value = str(field_of(record, field))
  if value not in values:
    raise ValueError(f'label {value!r}: {nearest(value, values)}'.rstrip('.'))
  return values[value]


def _label(
  text: str, field: str, values: Mapping[str, str], record: Mapping[str, Any]
) -> Label:
  name = _name(field, values, record)
  return Label(text_of(record, text), list(values.values()).index(name))


def _number(
  text: str, field: str, values: Mapping[str, str], record: Mapping[str, Any]
) -> Label:
  value = field_of(record, field)
  try:
    number = float(value)
  except (TypeError, ValueError):
    number = math.nan
  if not math.isfinite(number):
    raise ValueError(f'field {field!r} is no number: {value!r}')
  return Label(text_of(record, text), number)


def _conversation(
  text: str,
  field: str,
  values: Mapping[str, str],
  instruction: str,
  record: Mapping[str, Any],
) -> Conversation:
  return ask(text_of(record, text), _name(field, values, record), instruction)


def _grade(example: Conversation, answer: str) -> float:
  """1 for the label's name, in whatever case."""
  return float(answer.strip().casefold() == example.turns[-1].text.casefold())
