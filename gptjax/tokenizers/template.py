"""How a conversation is written in ids: our own control tokens.

  <|start|> <|user|> Hello <|turn|> <|assistant|> Hi! <|turn|> ...

The ids of control tokens come from code, those of what is said from `encode`, so text
that imitates a control token stays text. `load` finds the template that belongs to a
tokenizer: of the folder's `chat_template.jinja`, or this one where there is none.

What is asked for beside the words (`Conversation.control`, `Text.control`) is a line
each, such as `style: formal` (the idea: Keskar et al. 2019, CTRL, arXiv:1909.05858). In
a conversation they are the first lines of the system's turn, before a text its first
lines, with a blank line after them.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gptjax.lookup import nearest
from gptjax.tokenizers import store
from gptjax.words import Conversation, Encoded, Mistake, Template, Tokenizer, Turn

ROLES = ('system', 'user', 'assistant', 'tool')
TURN = '<|turn|>'
_NEEDED = (store.START, *(f'<|{role}|>' for role in ROLES), TURN)

_JINJA = """\
{{- '<|start|>' -}}
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|turn|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|turn|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def load(folder: Any, tokenizer: Tokenizer) -> Template | None:
  """The template in a tokenizer's folder, or our own; None: it has no way to write one.

  Raises:
    Mistake: a template that is broken.
  """
  del folder
  return own(tokenizer)


def own(tokenizer: Tokenizer) -> Template | None:
  """Our own template, if the tokenizer has its control tokens."""
  known = all(name in tokenizer.controls for name in _NEEDED)
  return Controls(tokenizer) if known else None


@dataclasses.dataclass(frozen=True)
class Controls:
  """The Template (see words.py) of our own control tokens."""

  tokenizer: Tokenizer

  @functools.cached_property
  def digest(self) -> str:
    """sha256 (hex) of the template's text."""
    return hashlib.sha256(self.jinja.encode()).hexdigest()

  @property
  def stops(self) -> tuple[int, ...]:
    """The end of a turn, and that of a document."""
    return self.tokenizer.controls[TURN], self.tokenizer.end

  @property
  def jinja(self) -> str:
    """The same for other tools."""
    return _JINJA

  def encode(
    self, conversation: Conversation, roles: Mapping[str, float]
  ) -> list[Encoded]:
    """Of each turn its own ids; the first has those of control lines before it.

    Raises:
      Mistake: an unknown role.
    """
    found = [
      self._turn(turn, turn.weight * roles.get(turn.role, 0.0))
      for turn in with_control(conversation)
    ]
    if len(found) > len(conversation.turns):
      found[:2] = [join(found[:2])]
    if found:
      found[0] = join(
        [Encoded(self._ids(store.START), np.zeros(1, np.float32)), found[0]]
      )
    return found

  def prompt(self, conversation: Conversation) -> np.ndarray:
    """Ids [n] int32 up to where the assistant begins to speak."""
    turns = [self._turn(turn, 0.0).ids for turn in with_control(conversation)]
    return np.concatenate([self._ids(store.START), *turns, self._ids('<|assistant|>')])

  def save(self, folder: Any) -> None:
    """Writes nothing: the tokenizer's control tokens say it all."""

  def _turn(self, turn: Turn, weight: float) -> Encoded:
    check_role(turn.role)
    text = self.tokenizer.encode(turn.text)
    ids = np.concatenate([self._ids(f'<|{turn.role}|>'), text, self._ids(TURN)])
    weights = np.full(len(ids), weight, np.float32)
    weights[0] = 0.0
    return Encoded(ids, weights)

  def _ids(self, name: str) -> np.ndarray:
    return np.array([self.tokenizer.controls[name]], np.int32)


def check_role(role: str) -> None:
  """Raises Mistake for a role that is none of ROLES."""
  if role not in ROLES:
    raise Mistake(f'a turn has the role {role!r}: {nearest(str(role), ROLES)}')


def join(parts: Sequence[Encoded]) -> Encoded:
  """Several runs of ids with weights as one."""
  weights = [
    np.ones(len(part.ids), np.float32) if part.weights is None else part.weights
    for part in parts
  ]
  return Encoded(np.concatenate([part.ids for part in parts]), np.concatenate(weights))


def control_lines(control: Sequence[tuple[str, str]]) -> str:
  """'style: formal', a line each."""
  return '\n'.join(f'{name}: {value}' for name, value in control)


def text_of(text: str, control: Sequence[tuple[str, str]]) -> str:
  """A document with its control lines before it, a blank line between."""
  return f'{control_lines(control)}\n\n{text}' if control else text


def with_control(conversation: Conversation, system: bool = True) -> tuple[Turn, ...]:
  """The turns, the first of which begins with the control lines.

  That is the system's turn, a new one where there was none; or, with system=False, for
  templates that have none, whichever turn comes first.
  """
  turns = conversation.turns
  if not conversation.control:
    return turns
  if turns and (turns[0].role == 'system' or not system):
    first = turns[0]
    return first._replace(text=text_of(first.text, conversation.control)), *turns[1:]
  return Turn('system', control_lines(conversation.control)), *turns
