"""Grade-school maths: worked answers that end in a number (GSM8K).

Cobbe et al. 2021, "Training verifiers to solve math word problems", arXiv:2110.14168.
"""

import decimal
import functools
import re
from collections.abc import Mapping
from typing import Any

from gptjax.tasks.examples import ask, file_task, text_of
from gptjax.tasks.split import Documents
from gptjax.words import Conversation

_STEP = re.compile(r'<<[^<>]*>>')
_NUMBER = re.compile(r'[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)')
MARK = '####'  # Before the number that is the answer.


def gsm8k(
  path: str = 'gsm8k',
  steps: bool = False,
  instruction: str = '',
  split: str = 'train',
  splits: Mapping[str, float] | None = None,
  val_path: str | None = None,
  test_path: str | None = None,
  on_bad: str = 'error',
  data: str | None = None,
  where: str = '',
) -> Documents:
  """The task of word problems: the user asks, the assistant works out '#### 72'.

  path: JSON lines with the fields question and answer; or the set 'gsm8k', whose test
    is its own.
  steps: whether answers keep what they give a calculator, <<48/2=24>>.
  instruction: a system's turn; '': none.
  split: train, val, test or all, by hash of the question.
  splits: fractions of val and test; 0 is none.
  val_path, test_path: files of their own.
  on_bad: error, or skip.
  data: the folder of data sets.
  where: the config key of these arguments.

  Raises:
    Mistake: no such file, a record without question or number (file and line), an empty
      split.
  """
  return file_task(
    path,
    'conversation',
    functools.partial(_conversation, steps, instruction),
    split=split,
    splits=splits,
    val_path=val_path,
    test_path=test_path,
    on_bad=on_bad,
    data=data,
    where=where,
    grade=grade,
  )


def _conversation(
  steps: bool, instruction: str, record: Mapping[str, Any]
) -> Conversation:
  answer = text_of(record, 'answer')
  if MARK not in answer or final_number(answer) is None:
    raise ValueError(f"field 'answer' does not end in {MARK} and a number")
  answer = answer if steps else _STEP.sub('', answer)
  return ask(text_of(record, 'question'), answer, instruction)


def grade(example: Conversation, answer: str) -> float:
  """1 where the answer comes to the same number."""
  right = final_number(example.turns[-1].text)
  return float(right is not None and final_number(answer) == right)


def final_number(text: str) -> decimal.Decimal | None:
  """The number after the last ####, or the last number of a text without one."""
  _, mark, after = text.rpartition(MARK)
  found = _NUMBER.findall(after)
  if not found:
    return None
  return decimal.Decimal((found[0] if mark else found[-1]).replace(',', ''))
