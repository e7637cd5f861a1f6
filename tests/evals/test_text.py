"""Answers of models whose answers are known: silent, endless, right, as generated."""

import numpy as np
import pytest

from gptjax.evals.text import text
from gptjax.generate import engine, schedule
from gptjax.words import Conversation, Mistake, Turn
from tests.evals.fakes import TEMPLATE, TOKENIZER, Talks, biased, make_model

LENGTH = 64
PAIRS = [('hi', ['ho', 'hu']), ('', ['x']), ('Grüße', ['ab cd']), ('zz' * 9, ['é'])]


@pytest.fixture(scope='module')
def made():
  return make_model()


def make(model, pairs=PAIRS, **settings):
  settings = dict(scores=('exact',), max_tokens=6, slots=3) | settings
  task = settings.pop('task', None) or Talks(pairs)
  return text(
    model=model,
    tokenizer=TOKENIZER,
    task=task,
    length=LENGTH,
    **{'template': TEMPLATE, **settings},
  )


def generated(model, weights, questions, max_tokens):
  """The greedy answers, one at a time."""
  found = []
  machine = engine.make_engine(model, weights, slots=1, length=LENGTH)
  greedy = schedule.Settings(temperature=0)
  for question in questions:
    ids = TEMPLATE.prompt(Conversation((Turn('user', question),))).tolist()
    request = schedule.Request(ids, max_tokens, greedy, TEMPLATE.stops)
    events = list(schedule.generate(machine, [request]))
    said = [e.id for e in events if e.finish_reason != 'stop']
    found.append((TOKENIZER.decode(said).strip(), len(events)))
  return found


def test_answers_are_those_of_the_greedy_decoder(made):
  model, weights = made
  questions = [f'{n} {"ab" * (n % 5)}' for n in range(7)]
  want = generated(model, weights, questions, 6)
  pairs = [(q, [answer]) for q, (answer, _) in zip(questions, want, strict=True)]
  pairs[0] = (questions[0], ['something else'])
  evaluator = make(model, pairs)
  found = evaluator.scores(weights)
  assert [row['answer'] for row in found.examples] == [answer for answer, _ in want]
  assert found.examples[1]['prompt'] == f'user: {questions[1]}'
  numbers = evaluator.run(weights)
  assert numbers['exact'] == 6 / 7
  assert numbers['length'] == np.mean([size for _, size in want])
  assert tuple(numbers) == evaluator.names == ('exact', 'length', 'stopped')


def test_other_weights_are_used_as_they_are(made):
  model, weights = made
  other = make_model(embed=32)[0].init(__import__('jax').random.key(9))
  evaluator = make(model)
  first = [row['answer'] for row in evaluator.scores(weights).examples]
  second = [row['answer'] for row in evaluator.scores(other).examples]
  assert first != second
  assert first == [row['answer'] for row in evaluator.scores(weights).examples]


def test_a_model_that_never_stops(made):
  model, weights = made
  numbers = make(biased(model, TEMPLATE.stops, -1e9), max_tokens=5).run(weights)
  assert numbers['stopped'] == 0
  assert numbers['length'] == 5


def test_a_silent_model(made):
  pytest.importorskip('sacrebleu', reason='extra [eval]')
  pytest.importorskip('rouge_score', reason='extra [eval]')
  model, weights = made
  silent = biased(model, TEMPLATE.stops[:1], 1e9)
  evaluator = make(silent, scores=('bleu', 'chrf', 'rouge1', 'rougeL', 'exact'))
  numbers = evaluator.run(weights)
  assert numbers == {
    **dict.fromkeys(('bleu', 'chrf', 'rouge1', 'rougeL', 'exact'), 0.0),
    'length': 1.0,  # The stop itself.
    'stopped': 1.0,
  }
  assert [row['answer'] for row in evaluator.scores(weights).examples] == [''] * 4


def test_what_is_too_long_counts_as_an_empty_answer(made):
  model, weights = made
  evaluator = make(model, [('a' * 200, ['b']), ('c', ['d'])])
  found = evaluator.scores(weights)
  assert found.examples[0]['answer'] == ''
  assert found.notes['too long to be answered'] == '1'
  assert found.units == 2


def test_grades_are_the_tasks_own(made):
  model, weights = made
  task = Talks(
    PAIRS, grade=lambda example, answer: float('hi' in example.turns[0].text)
  )
  evaluator = make(model, task=task)
  assert evaluator.run(weights)['grade'] == 0.25
  assert evaluator.scores(weights).examples[0]['grade'] == 1.0
  assert 'grade' in evaluator.names


def test_the_last_answer_counts_and_what_follows_it_does_not(made):
  model, weights = made

  class Longer(Talks):
    references = None

    def example(self, index):
      turns = [('user', 'a'), ('assistant', 'b'), ('user', 'c'), ('assistant', 'd')]
      return Conversation(tuple(Turn(*turn) for turn in [*turns, ('user', 'bye')]))

  (row,) = make(model, task=Longer([0])).scores(weights).examples
  assert row['prompt'] == 'user: a\nassistant: b\nuser: c'
  assert row['references'] == ['d']


def test_limit_is_of_examples(made):
  model, weights = made
  assert make(model, limit=2).scores(weights).units == 2


@pytest.mark.parametrize(
  ('settings', 'line'),
  [
    (dict(limit=0), 'limit=0'),
    (dict(max_tokens=0), 'max_tokens=0'),
    (dict(slots=0), 'slots=0'),
    (dict(temperature=-1), 'temperature=-1'),
    (dict(scores=('bleurt',)), "scores has no 'bleurt'"),
    (dict(template=None), 'no template'),
  ],
)
def test_mistakes(made, settings, line):
  with pytest.raises(Mistake, match=line):
    make(made[0], **settings)


def test_a_task_of_texts_is_refused(made):
  task = Talks(PAIRS)
  task.kind = 'text'
  with pytest.raises(Mistake, match='talks is of kind text'):
    make(made[0], task=task)


def test_a_conversation_without_an_answer_is_refused(made):
  class Silent(Talks):
    def example(self, index):
      return Conversation((Turn('user', 'a'),))

  with pytest.raises(Mistake, match='example 0 has no turn of the assistant'):
    make(made[0], task=Silent([0]))
