"""Chat templates of Jinja, as published models carry them.

The template writes a text, and the names of control tokens in it become their ids; but
only where the template itself wrote them. To tell, a mark goes before every place of
what is said where such a name begins, or could with what the template puts beside it;
marked names stay text, and the marks are taken out before the text is tokenized. Added
tokens that the tokenizer does not call special, such as a <think>, are open to all.

The answers are what lies within `{% generation %}` and `{% endgeneration %}`. In
templates without these the conversation up to each turn is written alone: a prefix of
the whole. An answer goes from where the template would have the assistant begin, to the
control token that ends it. A template that writes a turn otherwise when others follow
is refused there.

Templates are sandboxed: they read messages and write text. What they may use beside
Jinja is what transformers gives them (raise_exception, strftime_now, tojson); tokens
equal those of its apply_chat_template.
"""

import dataclasses
import datetime
import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from gptjax import files as disk
from gptjax.tokenizers import hf, pipeline, store
from gptjax.tokenizers.turns import check_role, join, with_control
from gptjax.words import Conversation, Encoded, Mistake, Tokenizer, Turn

FILE = 'chat_template.jinja'
NAMES = 'special_tokens_map.json'  # Which tokens the template calls bos_token, ...

# Noncharacters, which no text holds; in what is said they are replaced.
_MARK, _OPEN, _CLOSE = '\U0010fffe', '\U0001fffe', '\U0001ffff'
_PRIVATE = {ord(c): pipeline.LOST for c in (_MARK, _OPEN, _CLOSE, pipeline.HIDDEN)}
_SAID = 'zQz'  # What an answer says, to see what the template puts after it.


@dataclasses.dataclass(frozen=True, eq=False)
class Jinja:
  """The Template (see words.py) of a chat template's text.

  names: the tokens that the template calls bos_token, eos_token, ...
  """

  jinja: str
  tokenizer: Tokenizer
  names: Mapping[str, str]

  @functools.cached_property
  def digest(self) -> str:
    """sha256 (hex) of the template and of what it calls its tokens."""
    said = json.dumps([self.jinja, dict(self.names)], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()

  @functools.cached_property
  def stops(self) -> tuple[int, ...]:
    """The control token after an answer, and the end of a document."""
    turns = [Turn('user', 'Hello'), Turn('assistant', _SAID)]
    after = self._write(turns)[0].rpartition(_SAID)[2]
    found = re.search(f'{pipeline.HIDDEN}([0-9]+){pipeline.HIDDEN}', after)
    own = [int(found[1])] if found else []
    return tuple(dict.fromkeys([*own, self.tokenizer.end]))

  @functools.cached_property
  def system(self) -> bool:
    """Whether it has a place for what the system says."""
    try:
      text, _ = self._write([Turn('system', _SAID), Turn('user', 'Hello')])
    except Mistake:
      return False
    return _SAID in text

  def encode(
    self, conversation: Conversation, roles: Mapping[str, float]
  ) -> list[Encoded]:
    """Of each turn its own ids, joined the whole conversation.

    Of a turn that the template writes otherwise when others follow they are none: those
    of the next one that it does not are its own too.

    Raises:
      Mistake: the template refuses the conversation, or its answers cannot be told.
    """
    turns = with_control(conversation, self.system)
    if not turns:
      return []
    text, marked = self._write(turns)
    ids, bounds = self._ids(text)
    ends = self._ends(turns, text)
    weights = np.zeros(len(ids), np.float32)
    for start, stop, weight in self._spans(turns, text, marked, ends, roles):
      weights[(bounds[:, 0] < stop) & (bounds[:, 1] > start)] = weight
    places = np.maximum.accumulate([-1 if end is None else end for end in ends])
    cuts = np.searchsorted(bounds[:, 0], places[:-1])
    parts = list(map(Encoded, np.split(ids, cuts), np.split(weights, cuts)))
    return (
      parts if len(parts) == len(conversation.turns) else [join(parts[:2]), *parts[2:]]
    )

  def prompt(self, conversation: Conversation) -> np.ndarray:
    """Ids [n] int32 up to where the assistant begins to speak.

    Raises:
      Mistake: the template refuses the conversation.
    """
    turns = with_control(conversation, self.system)
    return self._ids(self._write(turns, prompt=True)[0])[0]

  def save(self, folder: Any) -> None:
    """Writes chat_template.jinja and the names of its tokens."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    disk.write(folder / FILE, self.jinja.encode())
    disk.write(folder / NAMES, json.dumps(dict(self.names), indent=2).encode())

  def _spans(
    self,
    turns: Sequence[Turn],
    text: str,
    marked: Sequence[tuple[int, int]],
    ends: Sequence[int | None],
    roles: Mapping[str, float],
  ) -> list[tuple[int, int, float]]:
    """Start, stop and weight of what weighs in the text."""
    found = []
    answers = [n for n, turn in enumerate(turns) if turn.role == 'assistant']
    given = [turn.weight * roles.get(turn.role, 0.0) for turn in turns]
    if self._marks:
      of_answers = [given[n] for n in answers]
      if len(marked) != len(answers) and len(set(of_answers)) > 1:
        raise Mistake(
          f'chat template: it marks {len(marked)} answers in a conversation of '
          f'{len(answers)} that weigh differently.'
        )
      weights = (
        of_answers if len(marked) == len(answers) else of_answers[:1] * len(marked)
      )
      found += [(*span, w) for span, w in zip(marked, weights, strict=True)]
    for n, turn in enumerate(turns):
      begin, end = ends[n - 1] if n else 0, ends[n]
      if turn.role == 'assistant' and not self._marks:
        found.append((*self._answer(turns, n, text, end), given[n]))
      elif turn.role != 'assistant' and given[n]:
        said = self._guard(turn.text).replace(_MARK, '').strip()
        place = -1 if None in (begin, end) else text.find(said, begin, end)
        if place < 0:
          raise Mistake(
            f'chat template: it does not write the {turn.role} as it speaks: only '
            f'c.mixture.roles.{turn.role}=0 is possible.'
          )
        found.append((place, place + len(said), given[n]))
    return found

  def _answer(
    self, turns: Sequence[Turn], n: int, text: str, end: int | None
  ) -> tuple[int, int]:
    """Where answer n begins and ends in the text, in a template without marks."""
    begun, _ = self._write(turns[:n], prompt=True)
    if end is None or not text.startswith(begun) or len(begun) > end:
      raise Mistake(
        f'chat template: it writes turn {n + 1} otherwise when others follow or when '
        'it is asked for, so its answers cannot be told: put {% generation %} and '
        '{% endgeneration %} around them in the template.'
      )
    name = pipeline.hidden_name(self.stops[0])
    stop = text.rfind(name, len(begun), end)
    if stop < 0:
      raise Mistake(
        'chat template: no control token ends an answer, so a model trained with it '
        'would never stop.'
      )
    return len(begun), stop + len(name)

  def _ends(self, turns: Sequence[Turn], text: str) -> list[int | None]:
    """Where each turn ends in the text; None: it is written otherwise alone."""
    found: list[int | None] = []
    for n in range(1, len(turns)):
      try:
        alone, _ = self._write(turns[:n])
      except Mistake:  # It may want a user, or an answer, before it writes.
        alone = ''
      found.append(len(alone) if alone and text.startswith(alone) else None)
    return [*found, len(text)]

  @functools.cached_property
  def _marks(self) -> bool:
    return bool(re.search(r'\{%-?\s*generation\b', self.jinja))

  @functools.cached_property
  def _template(self) -> Any:
    return _compile(self.jinja)

  @functools.cached_property
  def _ids(self) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    if self.tokenizer.name == 'hf' and isinstance(self.tokenizer, store.Table):
      return hf.with_controls(self.tokenizer, self.tokenizer.files)
    return functools.partial(_by_pieces, self.tokenizer)

  @functools.cached_property
  def _guard(self) -> Callable[[str], str]:
    return _make_guard(self.tokenizer.controls)

  @functools.cached_property
  def _written(self) -> re.Pattern[str]:
    names = '|'.join(map(re.escape, _longest_first(self.tokenizer.controls)))
    return re.compile(f'({_OPEN}|{_CLOSE}|(?<!{_MARK})(?:{names}))')

  def _write(
    self, turns: Sequence[Turn], prompt: bool = False
  ) -> tuple[str, list[tuple[int, int]]]:
    """The text, control tokens by their hidden names, and where it is an answer."""
    for turn in turns:
      check_role(turn.role)
    messages = [{'role': t.role, 'content': self._guard(t.text)} for t in turns]
    try:
      text = self._template.render(
        messages=messages,
        tools=None,
        documents=None,
        add_generation_prompt=prompt,
        **self.names,
      )
    except Exception as error:  # Whatever a template may do wrong.
      raise Mistake(f'chat template: {error or type(error).__name__}.') from None
    parts, size, spans, begun = [], 0, [], 0
    for part in self._written.split(text):
      if part == _OPEN:
        begun = size
      elif part == _CLOSE:
        spans.append((begun, size))
      else:
        index = self.tokenizer.controls.get(part)
        parts.append(
          part.replace(_MARK, '') if index is None else pipeline.hidden_name(index)
        )
        size += len(parts[-1])
    return ''.join(parts), spans


def make(
  text: str, tokenizer: Tokenizer, names: Mapping[str, str] | None = None
) -> Jinja:
  """The Template of a chat template's text.

  Args:
    text: of Jinja.
    tokenizer: of the model.
    names: the tokens that the template calls bos_token, eos_token, ...; None: those
      that start and end a document.

  Raises:
    Mistake: the text is no template of Jinja.
  """
  if names is None:
    by_id = {index: name for name, index in tokenizer.controls.items()}
    edges = {'bos_token': tokenizer.start, 'eos_token': tokenizer.end}
    names = {key: by_id[index] for key, index in edges.items() if index in by_id}
  _compile(text)
  return Jinja(text, tokenizer, dict(names))


@functools.lru_cache(8)
def _compile(text: str) -> Any:
  """A template that writes marks around the answers."""
  import jinja2
  import jinja2.ext
  import jinja2.nodes
  import jinja2.sandbox

  class Generation(jinja2.ext.Extension):
    tags = {'generation'}

    def parse(self, parser: Any) -> Any:
      line = next(parser.stream).lineno
      body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
      call = self.call_method('_marked')
      return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
      return f'{_OPEN}{caller()}{_CLOSE}'

  def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

  world: Any = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, jinja2.ext.loopcontrols],
  )
  world.filters['tojson'] = functools.partial(json.dumps, ensure_ascii=False)
  world.globals['raise_exception'] = raise_exception
  world.globals['strftime_now'] = lambda text: datetime.datetime.now().strftime(text)
  try:
    return world.from_string(text)
  except jinja2.TemplateError as error:
    raise Mistake(f'chat template: no template of Jinja: {error}.') from None


def _longest_first(names: Any) -> list[str]:
  return sorted(names, key=len, reverse=True)


def _make_guard(names: Any) -> Callable[[str], str]:
  """A function that marks what is said where a control token's name could be read.

  So before each name in it; before what ends it, if names begin like that; and at its
  beginning, if names end like that, or hold all of it.
  """
  names = _longest_first(names)
  longest = max(map(len, names), default=0)
  begins = {name[:n] for name in names for n in range(1, len(name))}
  ends = {name[n:] for name in names for n in range(1, len(name))}
  inside = re.compile(f'(?={"|".join(map(re.escape, names))})')

  @functools.lru_cache(256)  # A conversation is written once for each of its turns.
  def guard(text: str) -> str:
    text = store.plain(text).translate(_PRIVATE)
    front, back = len(text) - len(text.lstrip()), len(text.rstrip())
    places = {found.start() for found in inside.finditer(text)}
    for end in {back, len(text)}:
      places |= {
        end - n
        for n in range(1, min(longest, end + 1))
        if text[end - n : end] in begins
      }
    for start in {0, front}:
      heads = (text[start : start + n] for n in range(1, longest))
      whole = text[start:back]
      if any(head in ends for head in heads) or (
        whole and len(whole) < longest and any(whole in name for name in names)
      ):
        places.add(start)
    for place in sorted(places, reverse=True):
      text = f'{text[:place]}{_MARK}{text[place:]}'
    return text

  return guard


def _by_pieces(tokenizer: Tokenizer, text: str) -> tuple[np.ndarray, np.ndarray]:
  """Ids of a text with hidden names, and the bounds of each in it."""
  ids, bounds, at = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.int64)], 0
  for n, part in enumerate(
    re.split(f'{pipeline.HIDDEN}([0-9]+){pipeline.HIDDEN}', text)
  ):
    if n % 2:
      end = at + len(pipeline.hidden_name(int(part)))
      ids.append(np.array([int(part)], np.int32))
      bounds.append(np.array([[at, end]]))
    else:
      end = at + len(part)
      ids.append(tokenizer.encode(part))
      bounds.append(at + _bounds(tokenizer, ids[-1], part))
    at = end
  return np.concatenate(ids), np.concatenate(bounds)


def _bounds(tokenizer: Tokenizer, ids: np.ndarray, text: str) -> np.ndarray:
  """First and last + 1 character of each id [n, 2] of a text."""
  sizes = np.array([len(tokenizer.piece(i)) for i in ids.tolist()], np.int64)
  data = np.frombuffer(text.encode(), np.uint8)
  number = np.cumsum(
    (data & 0xC0) != 0x80
  )  # Of the character a byte belongs to, from 1.
  ends = np.cumsum(sizes)
  if not len(ids) or ends[-1] != len(data):
    whole = [0, len(text)]
    return np.tile(whole, (len(ids), 1))
  return np.stack([number[ends - sizes] - 1, number[ends - 1]], 1)
