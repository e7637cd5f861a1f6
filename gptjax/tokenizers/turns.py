"""Turns of a conversation, before they are tokens; and control lines before them.

What is asked for beside the words (`Conversation.control`, `Text.control`) is a line
each, such as `style: formal` (the idea: Keskar et al. 2019, CTRL, arXiv:1909.05858). In
a conversation they are the first lines of the system's turn, before a text its first
lines, with a blank line after them.
"""

from collections.abc import Sequence

import numpy as np

from gptjax.lookup import nearest
from gptjax.words import Conversation, Encoded, Mistake, Turn

ROLES = ('system', 'user', 'assistant', 'tool')


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
  """'style: formal', a line each, in the order of the names."""
  return '\n'.join(f'{name}: {value}' for name, value in sorted(control))


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
