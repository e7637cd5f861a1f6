"""Instructions with their answers: files of Alpaca's form, and of other field names."""

import functools
from collections.abc import Mapping
from typing import Any

from gptjax.tasks.examples import DROP, ask, file_task, text_of
from gptjax.tasks.split import Documents
from gptjax.words import Conversation


def instructions(
  path: str = 'alpaca_small',
  instruction: str = 'instruction',
  input: str = 'input',
  output: str = 'output',
  system: str = '',
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
  """The task of following instructions: a user's turn and an assistant's.

  path: JSON lines, a JSON array, Parquet or a table; or a set of the folder of data
    sets.
  instruction, input, output: fields of the records. The user says the instruction and,
    where it is there and not empty, the input after a blank line.
  system: what the system says first; '': nothing.
  split: train, val, test or all, by hash of what the user says.
  splits: fractions of val and test; 0 is none.
  val_path, test_path: files of their own.
  control, control_drop: fields of the records, see examples.make_task.
  on_bad: error, or skip.
  data: the folder of data sets.
  where: the config key of these arguments.

  Raises:
    Mistake: no such file, a record without instruction or answer (file and line), an
      empty split.
  """
  return file_task(
    path,
    'conversation',
    functools.partial(conversation_of, instruction, input, output, system),
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


def conversation_of(
  instruction: str, input: str, output: str, system: str, record: Mapping[str, Any]
) -> Conversation:
  """A record of Alpaca's form; ValueError says what is wrong with it."""
  said = text_of(record, instruction)
  more = record.get(input)
  if isinstance(more, str) and more.strip():
    said = f'{said}\n\n{more.strip()}'
  return ask(said, text_of(record, output), system)
