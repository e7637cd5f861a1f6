"""A task of given conversations, and models that answer in a known way."""

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.models.transformer import transformer
from gptjax.tokenizers.bytes import bytes as byte_tokenizer
from gptjax.tokenizers.template import own
from gptjax.words import Conversation, Label, Turn

TOKENIZER = byte_tokenizer()
TEMPLATE = own(TOKENIZER)


class Talks:
  """Questions and their right answers."""

  name, kind, digest = 'talks', 'conversation', 'a' * 64

  def __init__(self, pairs, labels=(), grade=None):
    self.pairs, self.labels = pairs, labels
    self.grade = grade

  def __len__(self):
    return len(self.pairs)

  def example(self, index):
    question, answers = self.pairs[index]
    return Conversation((Turn('user', question), Turn('assistant', answers[0])))

  def references(self, index):
    return self.pairs[index][1]


class Labels:
  """Texts and their classes."""

  name, kind, digest = 'labels', 'label', 'b' * 64

  def __init__(self, pairs, labels):
    self.pairs, self.labels = pairs, labels

  def __len__(self):
    return len(self.pairs)

  def example(self, index):
    return Label(*self.pairs[index])


def make_model(**settings):
  """A small transformer over bytes, and weights large enough to have opinions."""
  sizes = dict(layers=2, embed=32, heads=2, mlp=64) | settings
  model = transformer(vocab=TOKENIZER.size, **sizes)
  weights = jax.tree.map(lambda x: 3 * x, model.init(jax.random.key(1)))
  return model, weights


def biased(model, ids, by):
  """The model with `by` added to the logits of some ids."""
  lm = model.heads['lm']

  def head(params, hidden):
    return lm(params, hidden).at[..., jnp.array(ids)].add(by)

  return model._replace(heads={**model.heads, 'lm': head})


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  logits = logits - logits.max(-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
