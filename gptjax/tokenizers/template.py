"""How a conversation is written in ids: the template of a tokenizer, or our own.

  <|start|> <|user|> Hello <|turn|> <|assistant|> Hi! <|turn|> ...

The ids of control tokens come from code, those of what is said from `encode`, so text
that imitates a control token stays text. `load` finds the template that belongs to a
tokenizer: the chat template of Jinja in its folder, or this one where there is none.
Tokenizers of others that have neither (GPT-2's) write roles in words, and the end of a
document after each answer.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from gptjax.tokenizers import jinja, store
from gptjax.tokenizers.turns import ROLES, check_role, join, with_control
from gptjax.words import Conversation, Encoded, Mistake, Template, Tokenizer, Turn

TURN = '<|turn|>'
_WORDS = """\
{{- bos_token }}
{%- for message in messages %}
{{- message['role'] | capitalize + ': ' + message['content'] }}
{%- if message['role'] == 'assistant' %}{{- eos_token }}{%- endif %}
{{- '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}
"""
_NEEDED = (store.START, *(f'<|{role}|>' for role in ROLES), TURN)
_CONFIG = 'tokenizer_config.json'  # Of a published model's folder.

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


def load(folder: Any, tokenizer: Tokenizer) -> Template:
  """The template in a tokenizer's folder, of a run's or of a published model's.

  Returns:
    That of chat_template.jinja, or of tokenizer_config.json; else `own`.

  Raises:
    Mistake: a file is broken.
  """
  folder = epath.Path(folder)
  config = _json(folder / _CONFIG)
  if (folder / jinja.FILE).exists():
    text = (folder / jinja.FILE).read_text()
  else:
    text = config.get('chat_template')
  if isinstance(text, list):  # Several, by name.
    text = {t['name']: t['template'] for t in text}.get('default')
  if not text:
    return own(tokenizer)
  said = {**config, **_json(folder / jinja.NAMES)}
  names = {
    key: value['content'] if isinstance(value, dict) else value
    for key, value in said.items()
    if key.endswith('_token') and isinstance(value, str | dict)
  }
  return jinja.make(text, tokenizer, names or None)


def _json(path: epath.Path) -> dict[str, Any]:
  """What an optional file holds."""
  if not path.exists():
    return {}
  try:
    found = json.loads(path.read_bytes())
  except ValueError as error:
    raise Mistake(f'{path} is broken: {error}.') from None
  if not isinstance(found, dict):
    raise Mistake(f'{path} is broken: no JSON object.')
  return found


def own(tokenizer: Tokenizer) -> Template:
  """Our own template, or the one in words where the tokenizer lacks its tokens."""
  if all(name in tokenizer.controls for name in _NEEDED):
    return Controls(tokenizer)
  return jinja.make(_WORDS, tokenizer)


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
