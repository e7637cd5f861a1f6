"""Text in, text out, over the engine: whole characters as they come, and stop strings.

The bytes of tokens go through an incremental UTF-8 decoder, so a character whose bytes
lie in two tokens comes out once, whole. What may yet become a stop string is held back.
"""

import codecs
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from gptjax.generate.engine import Engine
from gptjax.generate.sampling import Settings
from gptjax.generate.schedule import Event, Request, check, generate
from gptjax.tokenizers.turns import text_of
from gptjax.words import Conversation, Mistake, Template, Tokenizer, Turn

# A text to continue, ids to continue as they are, or a conversation to be answered.
Prompt = str | Sequence[int] | Conversation
Control = Sequence[tuple[str, str]]  # What is asked for: ('style', 'formal').


class Piece(NamedTuple):
  """What one more token adds to an answer; `text` is empty while it is held back."""

  prompt: int  # Its number.
  answer: int  # From 0 to n - 1.
  text: str
  id: int
  logprob: float  # Nats, under the model itself.
  finish_reason: str | None  # 'stop' or 'length' with the last piece.


class Result(NamedTuple):
  """An answer to a prompt."""

  prompt: Prompt
  answer: int  # From 0 to n - 1.
  text: str  # What comes after the prompt.
  tokens: list[int]  # The new ids; one that stopped the answer is the last of them.
  logprobs: list[float]  # Nats, under the model itself.
  finish_reason: str  # 'stop' or 'length'.


def generate_text(
  engine: Engine, tokenizer: Tokenizer, prompts: Sequence[Prompt], **settings: Any
) -> list[Result]:
  """Continues the prompts together: results by prompt and, with n above 1, by answer.

  Args and Raises: as of `stream_text`.
  """
  return list(iterate_results(engine, tokenizer, prompts, **settings))


def iterate_results(
  engine: Engine, tokenizer: Tokenizer, prompts: Sequence[Prompt], **settings: Any
) -> Iterator[Result]:
  """The results of `generate_text`, each as soon as it and all before it are there.

  Args and Raises: as of `stream_text`.
  """
  pieces = stream_text(engine, tokenizer, prompts, **settings)
  return _collect(prompts, pieces, settings.get('n', 1))


def _collect(
  prompts: Sequence[Prompt], pieces: Iterator[Piece], n: int
) -> Iterator[Result]:
  answers: dict[tuple[int, int], list[Piece]] = {}
  turn = 0
  for piece in pieces:
    answers.setdefault((piece.prompt, piece.answer), []).append(piece)
    while (own := answers.get(divmod(turn, n))) and own[-1].finish_reason:
      yield Result(
        prompt=prompts[own[0].prompt],
        answer=own[0].answer,
        text=''.join(piece.text for piece in own),
        tokens=[piece.id for piece in own],
        logprobs=[piece.logprob for piece in own],
        finish_reason=own[-1].finish_reason,
      )
      del answers[divmod(turn, n)]
      turn += 1


def stream_text(
  engine: Engine,
  tokenizer: Tokenizer,
  prompts: Sequence[Prompt],
  *,
  max_tokens: int | None = 128,
  n: int = 1,
  stop: str | Sequence[str] = (),
  stop_ids: Sequence[int] | None = None,
  template: Template | None = None,
  control: Control = (),
  **settings: Any,
) -> Iterator[Piece]:
  """Continues the prompts together, a piece for each token as it is made.

  Args:
    engine: of `make_engine`.
    tokenizer: of the engine's model.
    prompts: texts, each put after the start token; ids; or conversations, whose next
      turn the assistant says.
    max_tokens: new tokens of an answer; None: until the context is full.
    n: answers to each prompt; answer i draws with seed + i.
    stop: strings that end an answer and are no part of it.
    stop_ids: tokens that do so; None: the end token, in conversations the template's.
    template: how conversations are written.
    control: what is asked for, of all texts and conversations.
    **settings: temperature, top_k, top_p, min_p, repetition_penalty, seed.

  Raises:
    Mistake: a setting out of range, a prompt that does not fit the context, or a
      conversation where there is no template.
  """
  stops = [stop] if isinstance(stop, str) else list(stop)
  if '' in stops:
    raise Mistake('stop: an empty string would end every answer before it begins.')
  requests = [
    Request(
      ids_of(tokenizer, prompt, template, control),
      max_tokens,
      Settings(**settings),
      frozenset(_ends(tokenizer, prompt, template) if stop_ids is None else stop_ids),
      n,
    )
    for prompt in prompts
  ]
  for number, request in enumerate(requests):
    try:
      check(engine, request)
    except Mistake as e:
      which = f'prompt {number + 1}: ' if len(requests) > 1 else ''
      raise Mistake(f'{which}{e}') from None
  return _stream(engine, tokenizer, requests, stops)


def slots_and_length(
  tokenizer: Tokenizer,
  prompts: Sequence[Prompt],
  *,
  context: int,
  max_tokens: int | None = 128,
  n: int = 1,
  template: Template | None = None,
  control: Control = (),
  most: int = 8,
) -> dict[str, int]:
  """For `make_engine`: no more slots, and no longer ones, than the prompts need.

  A step reads whole slots, so short answers in a long context are made faster. Lengths
  are multiples of 128, so that few programs are compiled.

  Args:
    tokenizer: of the model.
    prompts: as of `stream_text`.
    context: tokens that the model takes.
    max_tokens: as of `stream_text`.
    n: as of `stream_text`.
    template: as of `stream_text`.
    control: as of `stream_text`.
    most: slots.
  """
  sizes = [len(ids_of(tokenizer, prompt, template, control)) for prompt in prompts]
  longest = max(sizes, default=1)
  needed = context if max_tokens is None else longest + max_tokens
  length = min(context, -(-needed // 128) * 128)
  return {'slots': max(1, min(most, n * len(prompts))), 'length': length}


def said_by_user(prompt: Prompt, system: str = '') -> Prompt:
  """A text as the conversation in which a user says it; others as they are."""
  if not isinstance(prompt, str):
    return prompt
  first = (Turn('system', system),) if system else ()
  return Conversation((*first, Turn('user', prompt)))


def ids_of(
  tokenizer: Tokenizer,
  prompt: Prompt,
  template: Template | None = None,
  control: Control = (),
) -> list[int]:
  """The start token and a text's ids; a conversation's; given ids as they are.

  Raises:
    Mistake: a conversation, and there is no template.
  """
  if isinstance(prompt, str):
    return [tokenizer.start, *tokenizer.encode(text_of(prompt, control)).tolist()]
  if not isinstance(prompt, Conversation):
    return list(prompt) or [tokenizer.start]
  if template is None:
    raise Mistake('a conversation needs a template to be written with.')
  if control:
    prompt = prompt._replace(control=tuple(control))
  return template.prompt(prompt).tolist()


def _ends(
  tokenizer: Tokenizer, prompt: Prompt, template: Template | None
) -> Sequence[int]:
  chat = isinstance(prompt, Conversation) and template is not None
  return template.stops if chat else [tokenizer.end]


def _stream(
  engine: Engine, tokenizer: Tokenizer, requests: list[Request], stops: list[str]
) -> Iterator[Piece]:
  writers: dict[tuple[int, int], Callable[[Event], Piece]] = {}
  dropped: set[tuple[int, int]] = set()
  for event in generate(engine, requests, dropped):
    name = (event.request, event.answer)
    if name not in writers:
      ends = requests[event.request].stop_ids
      writers[name] = make_writer(tokenizer, stops, ends)
    piece = writers[name](event)
    if piece.finish_reason:
      del writers[name]
      dropped.add(name)
    yield piece


def make_writer(
  tokenizer: Tokenizer, stops: Sequence[str], ends: Any = ()
) -> Callable[[Event], Piece]:
  """A function from one answer's events, in order, to pieces of its text."""
  decode = codecs.getincrementaldecoder('utf-8')(errors='replace').decode
  until = make_stopper(stops)

  def write(event: Event) -> Piece:
    last = event.finish_reason is not None
    said = b'' if last and event.id in ends else tokenizer.piece(event.id)
    text, stopped = until(decode(said, last), last)
    reason = 'stop' if stopped else event.finish_reason
    return Piece(event.request, event.answer, text, event.id, event.logprob, reason)

  return write


def make_stopper(stops: Sequence[str]) -> Callable[[str, bool], tuple[str, bool]]:
  """A function from pieces of a text to what may be shown of it so far.

  `until(text, last)` gives the text to show and whether a stop string has come. The one
  that is whole first stops it, the longest of those; however the text is cut, the same
  is shown in all.
  """
  held = ''

  def until(text: str, last: bool) -> tuple[str, bool]:
    nonlocal held
    held += text
    found = [
      (held.find(stop) + len(stop), -len(stop)) for stop in stops if stop in held
    ]
    if found:
      end, size = min(found)
      shown, held = held[: end + size], ''
      return shown, True
    keep = 0 if last else _begun(held, stops)
    shown, held = held[: len(held) - keep], held[len(held) - keep :]
    return shown, False

  return until


def _begun(text: str, stops: Sequence[str]) -> int:
  """Characters at the end of a text that a stop string begins with."""
  longest = max((len(stop) - 1 for stop in stops), default=0)
  for size in range(min(longest, len(text)), 0, -1):
    if any(stop.startswith(text[-size:]) for stop in stops):
      return size
  return 0
