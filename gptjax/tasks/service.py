"""Customer service: schema-guided dialogues of a user and a system (SGD).

Rastogi et al. 2020, "Towards scalable multi-domain conversational agents: the
schema-guided dialogue dataset", arXiv:1909.05855.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from gptjax.tasks.examples import DROP, field_of, file_task
from gptjax.tasks.split import Documents
from gptjax.words import Conversation, Turn

ROLES = {'USER': 'user', 'SYSTEM': 'assistant'}
_RESULTS = 3  # Of a service that are shown; the dialogues speak of the first.


def service(
  path: str = 'sgd',
  calls: bool = False,
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
  """The task of serving a customer: dialogues of a user and an assistant.

  path: JSON files of dialogues, such as 'sgd/train/dialogues_*.json'; or the set 'sgd',
    whose val is its own dev.
  calls: whether the service calls behind an answer are turns before it: the assistant
    says {"method": ..., "parameters": ...}, a tool the first results, in JSON.
  split: train, val, test or all, by hash of what the user says first.
  splits: fractions of val and test; 0 is none.
  val_path, test_path: files of their own.
  control, control_drop: fields of the dialogues, such as dict(service='services').
  on_bad: error, or skip.
  data: the folder of data sets.
  where: the config key of these arguments.

  Raises:
    Mistake: no such file, a record that is no dialogue (file and line), an empty split.
  """
  return file_task(
    path,
    'conversation',
    functools.partial(_conversation, calls),
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


def _conversation(calls: bool, record: Mapping[str, Any]) -> Conversation:
  found: list[Turn] = []
  try:
    for turn in field_of(record, 'turns'):
      if calls:
        found += _calls(turn)
      found.append(Turn(ROLES[turn['speaker']], turn['utterance'].strip()))
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f'turn {len(found) + 1} is no turn of a dialogue: {error}'
    ) from None
  if not found:
    raise ValueError('a dialogue without turns')
  return Conversation(tuple(found))


def _calls(turn: Mapping[str, Any]) -> Iterator[Turn]:
  for frame in turn['frames']:
    if call := frame.get('service_call'):
      said = {'method': call['method'], 'parameters': call['parameters']}
      results = frame.get('service_results', [])[:_RESULTS]
      yield Turn('assistant', json.dumps(said, ensure_ascii=False))
      yield Turn('tool', json.dumps(results, ensure_ascii=False))
