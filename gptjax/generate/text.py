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
from gptjax.words import Mistake, Tokenizer

Prompt = str | Sequence[int]  # A text, or ids to continue as they are.


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

  Args:
    engine: of `make_engine`.
    tokenizer: of the engine's model.
    prompts: texts, each put after the start token, or ids.
    **settings: as of `stream_text`.

  Raises:
    Mistake: a setting out of range, or a prompt that does not fit the context.
  """
  answers: dict[tuple[int, int], list[Piece]] = {}
  for piece in stream_text(engine, tokenizer, prompts, **settings):
    answers.setdefault((piece.prompt, piece.answer), []).append(piece)
  return [
    Result(
      prompt=prompts[number],
      answer=answer,
      text=''.join(piece.text for piece in pieces),
      tokens=[piece.id for piece in pieces],
      logprobs=[piece.logprob for piece in pieces],
      finish_reason=pieces[-1].finish_reason or '',
    )
    for (number, answer), pieces in sorted(answers.items(), key=lambda pair: pair[0])
  ]


def stream_text(
  engine: Engine,
  tokenizer: Tokenizer,
  prompts: Sequence[Prompt],
  *,
  max_tokens: int | None = 128,
  n: int = 1,
  stop: str | Sequence[str] = (),
  stop_ids: Sequence[int] | None = None,
  **settings: Any,
) -> Iterator[Piece]:
  """Continues the prompts together, a piece for each token as it is made.

  Args:
    engine: of `make_engine`.
    tokenizer: of the engine's model.
    prompts: texts, each put after the start token, or ids.
    max_tokens: new tokens of an answer; None: until the context is full.
    n: answers to each prompt; answer i draws with seed + i.
    stop: strings that end an answer and are no part of it.
    stop_ids: tokens that do so; None: the end token.
    **settings: temperature, top_k, top_p, min_p, repetition_penalty, seed.

  Raises:
    Mistake: a setting out of range, or a prompt that does not fit the context.
  """
  stops = [stop] if isinstance(stop, str) else list(stop)
  if '' in stops:
    raise Mistake('stop: an empty string would end every answer before it begins.')
  ends = frozenset([tokenizer.end] if stop_ids is None else stop_ids)
  requests = [
    Request(ids_of(tokenizer, prompt), max_tokens, Settings(**settings), ends, n)
    for prompt in prompts
  ]
  for number, request in enumerate(requests):
    try:
      check(engine, request)
    except Mistake as e:
      which = f'prompt {number + 1}: ' if len(requests) > 1 else ''
      raise Mistake(f'{which}{e}') from None
  return _stream(engine, tokenizer, requests, stops)


def ids_of(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
  """The start token and a text's ids; given ids as they are."""
  if isinstance(prompt, str):
    return [tokenizer.start, *tokenizer.encode(prompt).tolist()]
  return list(prompt) or [tokenizer.start]


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
