"""Tasks of one kind each: what a record becomes, its grades; the real sets."""

import json

import pytest

from gptjax.tasks.gsm8k import final_number, gsm8k
from gptjax.tasks.instructions import instructions
from gptjax.tasks.questions import questions
from gptjax.tasks.service import service
from gptjax.tasks.summarization import summarization
from gptjax.tasks.text import text
from gptjax.words import Mistake, Text, Turn


def write(tmp_path, *records):
  path = tmp_path / 'a.jsonl'
  path.write_text('\n'.join(map(json.dumps, records)))
  return str(path)


def said(task, index=0):
  return [(turn.role, turn.text) for turn in task.example(index).turns]


def test_instructions_of_other_names(tmp_path):
  path = write(tmp_path, {'prompt': 'Add.', 'response': '3'})
  task = instructions(
    path, instruction='prompt', output='response', system='Be kind.', split='all'
  )
  assert said(task) == [('system', 'Be kind.'), ('user', 'Add.'), ('assistant', '3')]


DIALOGUE = {
  'services': ['Buses_1', 'Media_1'],
  'turns': [
    {'speaker': 'USER', 'utterance': 'A bus? ', 'frames': []},
    {
      'speaker': 'SYSTEM',
      'utterance': 'At 9.',
      'frames': [
        {
          'service_call': {'method': 'Find', 'parameters': {'to': 'é'}},
          'service_results': [{'at': n} for n in range(5)],
        }
      ],
    },
  ],
}


def test_service(tmp_path):
  path = write(tmp_path, DIALOGUE)
  task = service(path, split='all', control={'of': 'services'})
  assert said(task) == [('user', 'A bus?'), ('assistant', 'At 9.')]
  assert task.example(0).control == (('of', 'Buses_1, Media_1'),)
  assert said(service(path, split='all', calls=True)) == [
    ('user', 'A bus?'),
    ('assistant', '{"method": "Find", "parameters": {"to": "é"}}'),
    ('tool', '[{"at": 0}, {"at": 1}, {"at": 2}]'),
    ('assistant', 'At 9.'),
  ]
  for record in ({'turns': []}, {'turns': [{}]}, {'turns': 3}, {'turns': ['a']}):
    with pytest.raises(Mistake, match=r'a\.jsonl:1: '):
      service(write(tmp_path, record), split='all')


def test_summaries(tmp_path):
  path = write(
    tmp_path,
    {'source': ['One. ', 'Two.'], 'target': ['A', 'B']},
    {'source': 'Three.', 'target': 'C'},
  )
  task = summarization(path, split='all')
  assert said(task) == [
    ('system', 'Summarize in one sentence.'),
    ('user', 'One. Two.'),
    ('assistant', 'A'),
  ]
  assert [task.references(n) for n in range(2)] == [['A', 'B'], ['C']]
  before = summarization(path, split='all', instruction='Short:', role='user')
  assert said(before, 1)[0] == ('user', 'Short:\n\nThree.')
  for record in ({'source': 'a', 'target': []}, {'source': [1], 'target': 'b'}):
    with pytest.raises(Mistake, match=r'a\.jsonl:1: field'):
      summarization(write(tmp_path, record), split='all')


def test_questions_of_yes_and_no(tmp_path):
  path = write(
    tmp_path,
    {'question': 'Is it?', 'passage': 'It is.', 'answer': True},
    {'query': 'Passage: x\nQuestion: y?', 'choices': ['no', 'yes'], 'gold': 0},
  )
  task = questions(path, split='all', instruction='Yes or no?')
  assert said(task)[1:] == [('user', 'It is.\n\nIs it?'), ('assistant', 'yes')]
  assert said(task, 1)[1:] == [
    ('user', 'Passage: x\nQuestion: y?'),
    ('assistant', 'no'),
  ]
  grades = {'Yes.': 1, ' YES, it is': 1, 'no': 0, 'It is': 0, '': 0, 'Not yes': 0}
  assert {a: task.grade(task.example(0), a) for a in grades} == grades


def test_open_questions(tmp_path):
  path = write(
    tmp_path,
    {
      'context': 'Question: Who?\nAnswer:',
      'answer': 'Edward III',
      'aliases': ['E. III'],
    },
    {'question': 'What?', 'answer': ['the cat', 'puss']},
  )
  task = questions(path, split='all')
  assert said(task)[0] == ('user', 'Question: Who?')
  assert task.references(0) == ['Edward III', 'E. III']
  grades = {'edward iii.': 1, 'The E III': 1, 'Edward': 0, '': 0}
  assert {a: task.grade(task.example(0), a) for a in grades} == grades
  assert [task.grade(task.example(1), a) for a in ('Cat!', 'puss', 'dog')] == [1, 1, 0]
  for record in (
    {'question': 'a', 'answer': ''},
    {'question': 'a'},
    {'query': 'a', 'choices': ['b'], 'gold': 3},
    {'answer': 'b'},
  ):
    with pytest.raises(Mistake, match=r'a\.jsonl:1: '):
      questions(write(tmp_path, record), split='all')


@pytest.mark.parametrize(
  ('answer', 'number'),
  [
    ('so 3 + 4 = 7\n#### 1,234', 1234),
    ('#### -0.5', -0.5),
    ('It costs $1,200.00.', 1200),
    ('9 of 10 are 90%', 90),
    ('#### none', None),
    ('no number', None),
    ('', None),
  ],
)
def test_final_numbers(answer, number):
  found = final_number(answer)
  assert (found if found is None else float(found)) == number


def test_word_problems(tmp_path):
  path = write(tmp_path, {'question': 'How?', 'answer': '1+1=<<1+1=2>>2\n#### 2'})
  task = gsm8k(path, split='all')
  assert said(task) == [('user', 'How?'), ('assistant', '1+1=2\n#### 2')]
  assert said(gsm8k(path, split='all', steps=True))[1][1].startswith('1+1=<<')
  grades = {'#### 2': 1, '2.0': 1, 'It is 2.': 1, '#### 3': 0, '2 or 3': 0, '': 0}
  assert {a: task.grade(task.example(0), a) for a in grades} == grades
  with pytest.raises(Mistake, match=r"a\.jsonl:1: field 'answer' does not end"):
    gsm8k(write(tmp_path, {'question': 'How?', 'answer': '2'}), split='all')


def test_control_of_texts(tmp_path):
  rows = [{'text': f'text {n}', 'style': 'ab'[n % 2]} for n in range(400)]
  path = write(tmp_path, *rows)
  task = text(path, split='val', control={'manner': 'style'})
  plain = text(path, split='val')
  assert [task.example(i).text for i in range(len(task))] == [
    plain.example(i).text for i in range(len(plain))
  ]
  first = task.example(0)
  style = 'ab'[int(first.text.split()[1]) % 2]
  assert first == Text(first.text, (('manner', style),))
  train = text(path, control={'manner': 'style'}, control_drop=0.5)
  kept = sum(bool(train.example(i).control) for i in range(len(train)))
  assert kept / len(train) == pytest.approx(0.5, abs=0.1)
  assert len({task.digest, plain.digest}) == 2
  with pytest.raises(Mistake, match=r"a\.jsonl:1: no field 'mood'"):
    text(path, control={'manner': 'mood', 'x': 'style'})


SETS = [
  (instructions, {}, (1008, 53, 39), 2),
  (service, {}, (1382, 196, 61), 12),
  (summarization, {}, (1992, 619, 618), 3),
  (questions, {}, (2963, 158, 149), 2),
  (questions, {'path': 'triviaqa'}, (2726, 132, 142), 2),
  (gsm8k, {}, (7112, 361, 1319), 2),
]


@pytest.mark.parametrize(('task', 'arguments', 'sizes', 'turns'), SETS)
def test_real_sets(shared, task, arguments, sizes, turns):
  splits = ('train', 'val', 'test')
  parts = [task(split=split, data=str(shared), **arguments) for split in splits]
  assert tuple(map(len, parts)) == sizes
  first = parts[1].example(0)
  assert len(first.turns) >= turns
  assert first.turns[-1].role == 'assistant'
  assert first.turns[-1].text in parts[1].references(0)
  if parts[1].grade:
    graded = [parts[1].grade(parts[1].example(i), parts[1].references(i)[-1])
              for i in range(20)]  # fmt: skip
    assert graded == [1.0] * 20


def test_dialogues_of_the_real_set_alternate(shared):
  task = service(split='val', data=str(shared))
  for n in range(len(task)):
    roles = [turn.role for turn in task.example(n).turns]
    assert roles == ['user', 'assistant'] * (len(roles) // 2)
  assert isinstance(task.example(0).turns[0], Turn)
