"""Conversations of three formats, and everything that can be wrong with a record."""

import gzip
import json

import pytest

from gptjax.tasks.conversations import conversations
from gptjax.words import Conversation, Mistake, Turn

OPENAI = {
  'messages': [
    {'role': 'developer', 'content': 'Be kind.'},
    {'role': 'user', 'content': [{'type': 'text', 'text': 'Hi'}]},
    {'role': 'assistant', 'content': 'Yo!', 'weight': 0},
    {'role': 'function', 'name': 'f', 'content': '{}'},
    {'role': 'assistant', 'content': 'Yes?'},
  ]
}
SHAREGPT = {
  'conversations': [
    {'from': 'human', 'value': 'Hi'},
    {'from': 'gpt', 'value': 'Yo!'},
  ],
  'style': 'brief',
}
ALPACA = {'instruction': 'Add.', 'input': '1 2', 'output': '3'}


def write(tmp_path, *records, name='a.jsonl'):
  path = tmp_path / name
  lines = '\n'.join(r if isinstance(r, str) else json.dumps(r) for r in records)
  data = lines.encode('utf-8', 'surrogatepass')
  path.write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
  return str(path)


def test_formats_are_told_record_by_record(tmp_path):
  path = write(tmp_path, OPENAI, SHAREGPT, ALPACA, name='a.jsonl.gz')
  task = conversations(path, split='all')
  assert [task.example(n) for n in range(3)] == [
    Conversation((
      Turn('system', 'Be kind.'),
      Turn('user', 'Hi'),
      Turn('assistant', 'Yo!', 0.0),
      Turn('tool', '{}'),
      Turn('assistant', 'Yes?'),
    )),
    Conversation((Turn('user', 'Hi'), Turn('assistant', 'Yo!'))),
    Conversation((Turn('user', 'Add.\n\n1 2'), Turn('assistant', '3'))),
  ]  # fmt: skip
  assert task.references(0) == ['Yes?']
  assert task.where(1) == f'{path}:2'
  said = conversations(write(tmp_path, SHAREGPT), format='sharegpt', split='all')
  assert said.example(0) == task.example(1)


def turns(*pairs):
  return {'messages': [{'role': r, 'content': c} for r, c in pairs]}


@pytest.mark.parametrize(
  ('record', 'line'),
  [
    ({'text': 'x'}, 'no field messages or conversations or instruction; fields: text'),
    ({'messages': []}, "field 'messages' is no list of turns"),
    ({'messages': 'Hi'}, "field 'messages' is no list of turns"),
    ({'messages': ['Hi']}, 'turn 1 is no object'),
    (turns(('usr', 'Hi')), "turn 1 has role 'usr': did you mean 'user'"),
    (turns(('user', 'Hi'), ('assistant', ' ')), 'turn 2 says nothing'),
    (turns(('user', None)), 'turn 1 says nothing'),
    (turns(('user', [{'type': 'image_url'}])), 'turn 1 has parts that are no text'),
    (
      {'messages': [{'role': 'assistant', 'tool_calls': [1]}]},
      'turn 1 calls tools in fields of its own',
    ),
    (
      {'messages': [{'role': 'user', 'content': 'a', 'weight': -1}]},
      'turn 1 has weight -1',
    ),
    ({'instruction': 'Add.'}, "no field 'output'"),
    ({'instruction': '', 'output': '3'}, "field 'instruction' is empty"),
    ('{"messages": [{"role": "user", "content": "\\ud800"}]}', 'surrogates'),
    ('{', 'broken JSON'),
    ('[1]', 'no JSON object'),
  ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path, record, line):
  path = write(tmp_path, OPENAI, record, SHAREGPT)
  with pytest.raises(Mistake, match=line) as error:
    conversations(path, split='all')
  assert f'{path}:2: ' in str(error.value)
  assert '\n' not in str(error.value)
  task = conversations(path, split='all', on_bad='skip')
  assert (len(task), task.skipped) == (2, 1)


def test_control_fields(tmp_path):
  path = write(tmp_path, SHAREGPT)
  task = conversations(path, split='all', control={'manner': 'style'})
  assert task.example(0).control == (('manner', 'brief'),)
  for value, line in ((None, "no field 'style'"), (' ', 'is empty'), ({}, 'no words')):
    path = write(tmp_path, SHAREGPT, {**SHAREGPT, 'style': value})
    with pytest.raises(Mistake, match=rf'a\.jsonl:2: .*{line}'):
      conversations(path, split='all', control={'manner': 'style'})
  lists = {**SHAREGPT, 'style': ['a\n', 'b', 3]}
  task = conversations(write(tmp_path, lists), split='all', control={'x': 'style'})
  assert task.example(0).control == (('x', 'a , b, 3'),)


def test_control_is_dropped_for_a_share_of_the_training_examples(tmp_path):
  records = [
    {**turns(('user', f'{n}'), ('assistant', 'x')), 'a': 'b', 'c': 'd'}
    for n in range(1000)
  ]
  path = write(tmp_path, *records)
  both = dict(control={'a': 'a', 'c': 'c'})

  def count(task):
    found = [task.example(i).control for i in range(len(task))]
    return [sum(name in dict(c) for c in found) / len(task) for name in 'ac']

  train = conversations(path, **both)
  assert [train.example(i).control for i in range(50)] == [
    conversations(path, **both).example(i).control for i in range(50)
  ]
  assert count(train) == pytest.approx([0.9, 0.9], abs=0.04)
  half = conversations(path, control_drop=0.5, **both)
  assert count(half) == pytest.approx([0.5, 0.5], abs=0.06)
  neither = sum(not half.example(i).control for i in range(len(half))) / len(half)
  assert neither == pytest.approx(0.25, abs=0.06)
  assert count(conversations(path, control_drop=0.5, split='val', **both)) == [1, 1]
  bare = conversations(path)
  assert len({t.digest for t in (train, half, bare)}) == 3
  for a, b in ((train, half), (train, bare)):  # Control moves none between splits.
    assert [a.example(i).turns for i in range(len(a))] == [
      b.example(i).turns for i in range(len(b))
    ]


@pytest.mark.parametrize(
  ('change', 'line'),
  [
    (dict(format='openia'), "did you mean 'openai'"),
    (dict(format='alpaca'), 'no field instruction; fields: messages'),
    (dict(split='test'), "split 'test' would hold .* of at least 10"),
    (dict(control={'a': 1}), 'allowed is dict'),
    (dict(path='none.jsonl'), r'no file matches none\.jsonl'),
  ],
)
def test_mistakes(tmp_path, change, line):
  path = write(tmp_path, OPENAI)
  with pytest.raises(Mistake, match=line):
    conversations(**{'path': path, 'split': 'all', **change})


def test_an_empty_file(tmp_path):
  with pytest.raises(Mistake, match='is empty'):
    conversations(write(tmp_path, ''))
