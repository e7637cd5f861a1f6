"""Summarization: a text and one summary or several, such as SciTLDR's.

Cachola et al. 2020, "TLDR: extreme summarization of scientific documents",
arXiv:2004.15011.
"""

import functools
from collections.abc import Mapping
from typing import Any

from gptjax.tasks.examples import (
  DROP,
  ask,
  check_role,
  field_of,
  file_task,
)
from gptjax.tasks.split import Documents
from gptjax.words import Conversation

INSTRUCTION = 'Summarize in one sentence.'


def summarization(
  path: str = 'scitldr',
  text: str = 'source',
  summary: str = 'target',
  instruction: str = INSTRUCTION,
  role: str = 'system',
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
  """The task of summarizing: the user says a text, the assistant its first summary.

  All summaries are references for evaluation.

  path: JSON lines, Parquet or a table; or a set of the folder of data sets.
  text: the field of the text, or of a list of its sentences.
  summary: the field of the summary, or of a list of several.
  instruction, role: a system's turn, or what comes before the text (user); '': none.
  split: train, val, test or all, by hash of the text.
  splits: fractions of val and test; 0 is none.
  val_path, test_path: files of their own.
  control, control_drop: fields of the records, see examples.make_task.
  on_bad: error, or skip.
  data: the folder of data sets.
  where: the config key of these arguments.

  Raises:
    Mistake: no such file, a record without text or summary (file and line), an empty
      split.
  """
  check_role(role)
  return file_task(
    path,
    'conversation',
    functools.partial(_conversation, text, summary, instruction, role),
    split=split,
    splits=splits,
    val_path=val_path,
    test_path=test_path,
    on_bad=on_bad,
    data=data,
    where=where,
    control=control,
    control_drop=control_drop,
    answers=functools.partial(_texts, summary),
  )


def _conversation(
  text: str, summary: str, instruction: str, role: str, record: Mapping[str, Any]
) -> Conversation:
  return ask(
    ' '.join(_texts(text, record)), _texts(summary, record)[0], instruction, role
  )


def _texts(field: str, record: Mapping[str, Any]) -> list[str]:
  """The texts of a field, which holds one or a list."""
  value = field_of(record, field)
  found = value if isinstance(value, list) else [value]
  if not all(isinstance(text, str) for text in found):
    raise ValueError(f'field {field!r} holds something that is no text')
  found = [text.strip() for text in found if text.strip()]
  if not found:
    raise ValueError(f'field {field!r} is empty')
  return found
