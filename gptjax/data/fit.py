"""Conversations and labels as ids that fit a row, with the weight of each in the loss.

A conversation too long for a row is cut after the last answer that fits, so no answer
is cut and none is seen without what it answers; one whose first answer does not fit is
left out, and so is one without any. A text with a label is cut at its end, before the
label.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gptjax.lookup import nearest
from gptjax.tokenizers.store import plain
from gptjax.tokenizers.turns import join
from gptjax.words import (
  Conversation,
  Encoded,
  Label,
  Mistake,
  Template,
  Tokenizer,
)

ROLES = {'system': 0.0, 'user': 0.0, 'assistant': 1.0, 'tool': 0.0}


class Recipe(NamedTuple):
  """What decides the ids of conversations and labels beside their tokenizer."""

  template: Template | None = None
  roles: Mapping[str, float] = ROLES  # Weights of their turns in the loss.
  length: int | None = None  # Tokens of a row; None: nothing is cut.


PLAIN = Recipe()  # Enough for text.


class Fitted(NamedTuple):
  """An example that fits; `encoded` is None where it is left out."""

  encoded: Encoded | None
  bytes: float  # UTF-8, of the texts that weigh, times their weights.
  cut: bool = False


def make_roles(given: Mapping[str, Any] | None) -> dict[str, float]:
  """The weights of roles, those of ROLES where not said.

  Raises:
    Mistake: another role, or a weight that is no finite number of at least 0.
  """
  for role, weight in (given or {}).items():
    if role not in ROLES:
      raise Mistake(f'c.mixture.roles has no {role!r}: {nearest(str(role), ROLES)}')
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight < 0:
      raise Mistake(
        f'c.mixture.roles.{role}={weight!r}: a weight is a number from 0 on.'
      )
  return {**ROLES, **{role: float(w) for role, w in (given or {}).items()}}


def fit(example: Conversation | Label, tokenizer: Tokenizer, recipe: Recipe) -> Fitted:
  """The example as ids, not more than a row holds."""
  if isinstance(example, Label):
    return _label(example, tokenizer, recipe.length)
  return _conversation(example, recipe)


def _conversation(conversation: Conversation, recipe: Recipe) -> Fitted:
  assert recipe.template is not None
  turns = conversation.turns
  try:
    parts = recipe.template.encode(conversation, recipe.roles)
  except Mistake as mistake:
    begin = turns[0].text[:40] if turns else ''
    raise Mistake(f'{mistake} The conversation begins {begin!r}.') from None
  ends = np.cumsum([len(part.ids) for part in parts])
  weights = [turn.weight * recipe.roles[turn.role] for turn in turns]
  room = math.inf if recipe.length is None else recipe.length + 1
  keep = len(turns)
  if keep and ends[-1] > room:
    fitting = [
      n + 1
      for n, part in enumerate(parts)
      if weights[n] and len(part.ids) and ends[n] <= room
    ]
    keep = max(fitting, default=0)
  if not any(weights[:keep]):
    return Fitted(None, 0.0)
  sizes = [len(plain(turn.text).encode()) for turn in turns[:keep]]
  size = float(np.dot(weights[:keep], sizes))
  return Fitted(join(parts[:keep]), size, keep < len(turns))


def _label(example: Label, tokenizer: Tokenizer, length: int | None) -> Fitted:
  """[start] + tokens + [end], then what is to be said: a class, or 0 for a number."""
  text = plain(example.text)
  ids = tokenizer.encode(text)
  room = len(ids) if length is None else max(0, length - 2)
  named = isinstance(example.label, int)
  if named and not 0 <= example.label < tokenizer.size:
    raise Mistake(
      f'a class of index {example.label}: below {tokenizer.size} is allowed.'
    )
  last = [tokenizer.end, example.label if named else 0]
  joined = np.concatenate([[tokenizer.start], ids[:room], last]).astype(np.int32)
  weights, scores = np.zeros((2, len(joined)), np.float32)
  weights[-1], scores[-1] = 1.0, example.label
  return Fitted(Encoded(joined, weights, scores), len(text.encode()), room < len(ids))
