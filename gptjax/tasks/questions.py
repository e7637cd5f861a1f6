"""Question answering: yes or no about a passage, or open with aliases of the answer.

BoolQ: Clark et al. 2019, arXiv:1905.10044. TriviaQA, and what counts as the same answer
(articles, punctuation and case left out): Joshi et al. 2017, arXiv:1705.03551.
"""

import functools
import re
import string
from collections.abc import Mapping
from typing import Any

from gptjax.tasks import split as splitting
from gptjax.tasks.examples import (
  DROP,
  ask,
  check_role,
  field_of,
  make_task,
  open_records,
  text_of,
)
from gptjax.tasks.find import of_split
from gptjax.tasks.split import Documents
from gptjax.words import Conversation

_YES_NO = ('no', 'yes')
_ARTICLES = re.compile(r'\b(a|an|the)\b')
_MARKS = str.maketrans(dict.fromkeys(string.punctuation, ' '))


def questions(
  path: str = 'boolq',
  question: str = 'question',
  passage: str = 'passage',
  answer: str = 'answer',
  aliases: str = 'aliases',
  instruction: str = '',
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
  """The task of answering questions: the user asks, the assistant answers in words.

  path: JSON lines, Parquet or a table; or a set of the folder of data sets: 'boolq'
    (yes or no), 'triviaqa' (open).
  question, passage, answer, aliases: fields of the records. The user says the passage,
    if there is one, and the question. The answer is a text, a list of right ones, or
    true or false, which are yes and no. Evaluation files of the forms {query, choices,
    gold} and {context, answer, aliases} are known too.
  instruction, role: a system's turn, or before the question (user); '': none.
  split: train, val, test or all, by hash of the question.
  splits: fractions of val and test; 0 is none.
  val_path, test_path: files of their own.
  control, control_drop: fields of the records, see examples.make_task.
  on_bad: error, or skip.
  data: the folder of data sets.
  where: the config key of these arguments.

  Raises:
    Mistake: no such file, a record without question or answer (file and line), an empty
      split.
  """
  check_role(role)
  name, shares = path, splitting.fractions(splits)
  path, split, shares = of_split(path, split, shares, val_path, test_path)
  records = open_records(path, data, on_bad)
  fields = (question, passage, answer, aliases)
  make = functools.partial(_conversation, fields, instruction, role)
  return make_task(
    name,
    'conversation',
    records,
    make,
    split=split,
    shares=shares,
    on_bad=on_bad,
    where=where,
    control=control,
    control_drop=control_drop,
    answers=functools.partial(_answers, fields),
    grade=functools.partial(_grade, _Known(records, make, fields)),
  )


Fields = tuple[str, str, str, str]  # Question, passage, answer, aliases.


def _conversation(
  fields: Fields, instruction: str, role: str, record: Mapping[str, Any]
) -> Conversation:
  asked = _asked(fields, record)
  return ask(asked, _answers(fields, record)[0], instruction, role)


def _asked(fields: Fields, record: Mapping[str, Any]) -> str:
  if fields[0] not in record:
    for field in ('query', 'context'):
      if field in record:
        return text_of(record, field).removesuffix('Answer:').strip()
  question = text_of(record, fields[0])
  if record.get(fields[1]):
    return f'{text_of(record, fields[1])}\n\n{question}'
  return question


def _answers(fields: Fields, record: Mapping[str, Any]) -> list[str]:
  """The right answers, the one to learn first."""
  if 'choices' in record and 'gold' in record:
    try:
      return [str(record['choices'][record['gold']]).strip()]
    except (TypeError, IndexError, KeyError):
      raise ValueError("field 'gold' is no index of 'choices'") from None
  value = field_of(record, fields[2])
  if isinstance(value, bool):
    return [_YES_NO[value]]
  more = record.get(fields[3]) or []
  found = [*(value if isinstance(value, list) else [value]), *more]
  found = [text.strip() for text in found if isinstance(text, str) and text.strip()]
  if not found:
    raise ValueError(f'field {fields[2]!r} is empty or no text')
  return list(dict.fromkeys(found))


class _Known:
  """The right answers by what is asked, read when first asked for."""

  def __init__(self, records: Any, make: Any, fields: Fields):
    self._records, self._make, self._fields = records, make, fields
    self._answers: dict[str, list[str]] = {}

  def __call__(self, example: Conversation) -> list[str]:
    if not self._answers:
      for record in map(self._records.__getitem__, range(len(self._records))):
        try:
          asked = self._make(record).turns[-2].text
        except ValueError:
          continue  # Passed over with on_bad='skip'.
        self._answers.setdefault(asked, []).extend(_answers(self._fields, record))
    return self._answers.get(example.turns[-2].text, [example.turns[-1].text])


def _grade(known: _Known, example: Conversation, answer: str) -> float:
  """1 for one of the right answers; of yes and no the first word counts."""
  right = {_normal(text) for text in known(example)}
  said = _normal(answer)
  if right <= set(_YES_NO):
    said = said.split(' ')[0]
  return float(said in right)


def _normal(text: str) -> str:
  """Case, punctuation, articles and white space left out."""
  return ' '.join(_ARTICLES.sub(' ', text.casefold().translate(_MARKS)).split())
