"""Classes by a head and in words, against one example at a time."""

import functools

import jax
import numpy as np
import pytest

from gptjax import sharding
from gptjax.evals import classify as classify_lib
from gptjax.evals.classify import classify
from gptjax.words import Conversation, Mistake, Turn
from tests.evals.fakes import (
  TEMPLATE,
  TOKENIZER,
  Labels,
  Talks,
  log_softmax,
  make_model,
)

LENGTH = 64
NAMES = ('no', 'yes', 'not at all')
TEXTS = [f'{n} ' + 'abc ' * (n % 11) for n in range(40)]


def make(model, task, length=LENGTH, **settings):
  settings = dict(template=TEMPLATE, batch_size=8) | settings
  return classify(
    model=model, tokenizer=TOKENIZER, task=task, length=length, **settings
  )


@pytest.fixture(scope='module')
def headed():
  return make_model(outputs=('classes',), classes=3)


@pytest.fixture(scope='module')
def spoken():
  return make_model()


def heads_guess(forward, text):
  """What the class head says after a text alone; `forward` gives it of [1, T]."""
  ids = [TOKENIZER.start, *TOKENIZER.encode(text).tolist()][: LENGTH - 1]
  tokens = np.zeros((1, LENGTH), np.int32)
  tokens[0, : len(ids) + 1] = [*ids, TOKENIZER.end]
  return int(np.argmax(forward(tokens)[0, len(ids)]))


def make_forward(model, weights, head):
  """Outputs of a head for tokens [B, T], all in one pass."""

  @jax.jit
  def forward(tokens):
    return model.heads[head](weights, model.hidden(weights, {'tokens': tokens})[0])

  return forward


def test_a_head_is_asked_at_the_end_of_each_text(headed):
  model, weights = headed
  forward = make_forward(model, weights, 'classes')
  guesses = [heads_guess(forward, text) for text in TEXTS]
  assert len(set(guesses)) > 1
  labels = [(g + (n % 4 == 0)) % 3 for n, g in enumerate(guesses)]
  task = Labels(list(zip(TEXTS, labels, strict=True)), NAMES)
  evaluator = make(model, task)
  found = evaluator.run(weights)
  assert found['accuracy'] == 30 / 40
  assert tuple(found) == evaluator.names
  table = np.zeros((3, 3), int)
  np.add.at(table, (labels, guesses), 1)
  assert evaluator.scores(weights).notes['confusion'] == table.tolist()


def test_a_mesh_gives_the_same(headed):
  model, weights = headed
  task = Labels([(text, n % 3) for n, text in enumerate(TEXTS)], NAMES)
  alone = make(model, task).run(weights)
  with sharding.use(sharding.make_mesh({'data': 8})):
    assert make(model, task).run(weights) == alone


def logprob(forward, question, label):
  """Of a label and the end of the turn after it."""
  talk = Conversation((Turn('user', question), Turn('assistant', label)))
  before, answer = TEMPLATE.encode(talk, {'assistant': 1.0})
  ids = np.concatenate([before.ids, answer.ids])
  tokens = np.zeros((1, 96), np.int32)
  tokens[0, : len(ids)] = ids
  found = log_softmax(forward(tokens)[0])
  places = np.flatnonzero(answer.weights) + len(before.ids)
  return sum(found[n - 1, ids[n]] for n in places)


def test_a_label_in_words_is_the_likeliest(spoken):
  model, weights = spoken
  forward = make_forward(model, weights, 'lm')
  want = np.array([[logprob(forward, text, name) for name in NAMES] for text in TEXTS])
  guesses = want.argmax(1)
  pairs = [(text, [NAMES[n % 3]]) for n, text in enumerate(TEXTS)]
  task = Talks(pairs, labels=NAMES)
  found = make(model, task).scores(weights)
  assert [row['answer'] for row in found.examples] == [NAMES[g] for g in guesses]
  table = np.zeros((3, 3), int)
  np.add.at(table, (np.arange(40) % 3, guesses), 1)
  assert found.notes['confusion'] == table.tolist()
  # The numbers themselves, through the cache, in batches of like length.
  choices = [
    classify_lib._choice(TEMPLATE, task, i, NAMES, LENGTH) for i in range(len(TEXTS))
  ]
  score = jax.jit(functools.partial(classify_lib._label_logprobs, model))
  got = np.zeros_like(want)
  for members, batch in classify_lib._batches(choices, LENGTH):
    got[members] = np.asarray(score(weights, batch))[: len(members)]
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_labels_that_begin_alike_are_told_apart():
  labels = ('not', 'nothing')
  task = Talks([('q', ['not'])], labels=labels)
  choice = classify_lib._choice(TEMPLATE, task, 0, labels, LENGTH)
  # 'n' of both comes after what they share: it weighs.
  assert [len(rest) for rest in choice.rests] == [4, 8]
  assert all((weights > 0).all() for weights in choice.weights)


def test_a_prompt_too_long_loses_its_beginning(spoken):
  model, weights = spoken
  task = Talks([('x' * 300, ['no']), ('y', ['yes'])], labels=NAMES)
  choice = classify_lib._choice(TEMPLATE, task, 0, NAMES, LENGTH)
  assert len(choice.prompt) + max(map(len, choice.rests)) == LENGTH
  assert make(model, task).scores(weights).units == 2


def test_limit_and_absent_classes(spoken):
  model, weights = spoken
  pairs = [(text, ['yes']) for text in TEXTS]
  evaluator = make(model, Talks(pairs, labels=NAMES), limit=5)
  assert evaluator.scores(weights).units == 5
  found = evaluator.run(weights)
  assert found['recall/no'] == 0
  assert found['accuracy'] == found['recall/yes']


@pytest.mark.parametrize(
  ('task', 'settings', 'line'),
  [
    (Talks([('a', ['no'])]), {}, 'kind conversation and has 0'),
    (Talks([('a', ['maybe'])], labels=NAMES), {}, 'example 0 does not end in one of'),
    (Talks([('a', ['no'])], labels=NAMES), dict(template=None), 'no template'),
    (Talks([('a', ['no'])], labels=NAMES), dict(length=6), 'does not fit the context'),
    (Talks([('a', ['no'])], labels=NAMES), dict(limit=0), 'limit=0'),
    (Labels([(t, 0) for t in TEXTS], NAMES), {}, r"c\.model\.outputs=\('classes',\)"),
  ],
)
def test_mistakes(spoken, task, settings, line):
  with pytest.raises(Mistake, match=line):
    make(spoken[0], task, **settings)
