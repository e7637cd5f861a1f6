"""Bits per byte against one document at a time in NumPy."""

import math

import jax
import numpy as np
import pytest

from gptjax import sharding
from gptjax.evals.perplexity import perplexity
from gptjax.models.transformer import transformer
from gptjax.tokenizers import bytes as byte_tokens
from gptjax.tokenizers import template, turns
from gptjax.words import Conversation, Mistake, Text, Turn

LENGTH = 24
TOKENIZER = byte_tokens.bytes()
TEXTS = [
  'Grüße',
  '',
  'x' * LENGTH,
  'y' * (LENGTH - 1),
  'The quick brown fox. ' * 4,
  'Zwei\n',
  'drei vier fünf ' * 7,
  '\N{GRINNING FACE}' * 3,
]


class Texts:
  name, kind, digest = 'texts', 'text', '0' * 64

  def __len__(self):
    return len(TEXTS)

  def example(self, index):
    return Text(TEXTS[index])


@pytest.fixture(scope='module')
def model():
  return transformer(vocab=TOKENIZER.size, layers=2, embed=32, heads=2, mlp=64)


@pytest.fixture(scope='module')
def weights(model):
  return jax.tree.map(lambda x: 3 * x, model.init(jax.random.key(0)))


def make(model, batch_size=2, **settings):
  return perplexity(
    model=model,
    tokenizer=TOKENIZER,
    task=Texts(),
    length=LENGTH,
    batch_size=batch_size,
    **settings,
  )


def one_by_one(model, weights, texts):
  """Nats, tokens and right guesses of each document alone, in float64."""
  forward = jax.jit(lambda w, b: model.heads['lm'](w, model.hidden(w, b)[0]))
  nats = count = correct = 0
  for text in texts:
    ids = [TOKENIZER.start, *TOKENIZER.encode(text).tolist(), TOKENIZER.end]
    for start in range(0, len(ids) - 1, LENGTH):
      inputs = np.array(ids[start : start + LENGTH])[: len(ids) - 1 - start]
      targets = np.array(ids[start + 1 : start + 1 + len(inputs)])
      tokens = np.zeros((1, LENGTH), np.int32)  # Causal: what comes after is nothing.
      tokens[0, : len(inputs)] = inputs
      logits = np.asarray(forward(weights, {'tokens': tokens})[0, : len(inputs)], float)
      top = logits.max(-1, keepdims=True)
      logits = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
      nats -= logits[np.arange(len(targets)), targets].sum()
      correct += (logits.argmax(-1) == targets).sum()
      count += len(targets)
  return nats, count, correct


@pytest.mark.parametrize('batch_size', [1, 3])
def test_equals_one_document_at_a_time(model, weights, batch_size):
  nats, count, correct = one_by_one(model, weights, TEXTS)
  size = sum(len(text.encode()) for text in TEXTS)
  assert count == size + len(TEXTS)  # Bytes are tokens here, and each has an end.
  got = make(model, batch_size=batch_size).run(weights)
  assert set(got) == {'nats_per_token', 'bits_per_byte', 'accuracy'}
  assert math.isclose(got['nats_per_token'], nats / count, rel_tol=1e-6)
  assert math.isclose(got['bits_per_byte'], nats / size / math.log(2), rel_tol=1e-6)
  assert got['accuracy'] == correct / count


TALKS = [
  [('user', 'Hi'), ('assistant', 'Grüße')],
  [('system', 'x'), ('user', 'Yes'), ('assistant', 'No'), ('user', 'y')],
  [('user', 'ab'), ('assistant', 'c'), ('user', 'd' * 30), ('assistant', 'e')],  # Cut.
  [('user', 'f' * 30), ('assistant', 'g')],  # Left out.
]


class Talks:
  name, kind, digest = 'talks', 'conversation', '1' * 64

  def __len__(self):
    return len(TALKS)

  def example(self, index):
    return Conversation(tuple(Turn(*turn) for turn in TALKS[index]))


@pytest.mark.parametrize('roles', [{}, {'user': 0.5}])
def test_conversations_count_as_they_weigh(model, weights, roles):
  own = template.own(TOKENIZER)
  weigh = {'system': 0.0, 'user': 0.0, 'assistant': 1.0, 'tool': 0.0} | roles
  forward = jax.jit(lambda w, b: model.heads['lm'](w, model.hidden(w, b)[0]))
  nats = count = size = 0
  for said in (TALKS[0], TALKS[1], TALKS[2][:2]):
    talk = Conversation(tuple(Turn(*turn) for turn in said))
    whole = turns.join(own.encode(talk, weigh))
    tokens = np.zeros((1, LENGTH), np.int32)
    tokens[0, : len(whole.ids) - 1] = whole.ids[:-1]
    logits = np.asarray(forward(weights, {'tokens': tokens})[0], float)
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    places = np.arange(len(whole.ids) - 1)
    nats -= (whole.weights[1:] * logits[places, whole.ids[1:]]).sum()
    count += whole.weights[1:].sum()
    size += sum(weigh[role] * len(text.encode()) for role, text in said)
  got = perplexity(
    model=model,
    tokenizer=TOKENIZER,
    template=own,
    roles=roles,
    task=Talks(),
    length=LENGTH,
    batch_size=2,
  ).run(weights)
  assert math.isclose(got['nats_per_token'], nats / count, rel_tol=1e-5)
  assert math.isclose(got['bits_per_byte'], nats / size / math.log(2), rel_tol=1e-5)


def test_labels_are_for_others(model):
  class Labels(Talks):
    kind = 'label'

  with pytest.raises(Mistake, match='of kind text and conversation; talks is of kind'):
    perplexity(
      model=model, tokenizer=TOKENIZER, task=Labels(), length=LENGTH, batch_size=2
    )


def test_a_limit_reads_the_first_documents(model, weights):
  texts = TEXTS[:3]
  nats, count, _ = one_by_one(model, weights, texts)
  got = make(model, limit=3).run(weights)
  assert math.isclose(got['nats_per_token'], nats / count, rel_tol=1e-6)
  whole = make(model).run(weights)
  assert make(model, limit=99).run(weights) == whole != got


def test_the_same_weights_give_the_same_bits(model, weights):
  evaluator = make(model, every=7)
  assert evaluator.every == 7
  first = evaluator.run(weights)
  other = evaluator.run(jax.tree.map(lambda x: x / 2, weights))
  assert other != first
  assert evaluator.run(weights) == first
  assert make(model).run(weights) == first


def test_a_mesh_changes_nothing(model, weights):
  alone = make(model, batch_size=8).run(weights)
  mesh = sharding.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  with sharding.use(mesh):
    laid = jax.device_put(weights, sharding.layout(weights, model.axes))
    got = make(model, batch_size=8).run(laid)
  for name, value in alone.items():
    assert math.isclose(got[name], value, rel_tol=1e-5), name


def test_mistakes(model):
  with pytest.raises(Mistake, match='limit=0'):
    make(model, limit=0)
  with pytest.raises(Mistake, match='less than one row'):
    make(model, limit=1)
