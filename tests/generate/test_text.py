"""Streams against whole texts, whatever the cut into tokens."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import pytest

from gptjax.generate.engine import make_engine
from gptjax.generate.schedule import Event
from gptjax.generate.text import (
  generate_text,
  make_stopper,
  make_writer,
  stream_text,
)
from gptjax.models.transformer import transformer
from gptjax.tokenizers import bytes as byte_tokens
from gptjax.words import Mistake

TOKENIZER = byte_tokens.bytes()
LETTERS = st.text(st.sampled_from('abé\N{GRINNING FACE}'), max_size=30)
STOPS = st.lists(
  st.text(st.sampled_from('abé\N{GRINNING FACE}'), min_size=1, max_size=4), max_size=3
)


# The machine may be busy.
slowly = hypothesis.settings(deadline=None)


def events_of(ids, reason='length'):
  reasons = [None] * (len(ids) - 1) + [reason]
  return [Event(0, 0, i, 0.0, r) for i, r in zip(ids, reasons, strict=True)]


@slowly
@hypothesis.given(st.lists(st.integers(0, TOKENIZER.size - 1), min_size=1))
def test_pieces_joined_equal_the_whole_decoded(ids):
  write = make_writer(TOKENIZER, [])
  assert ''.join(write(e).text for e in events_of(ids)) == TOKENIZER.decode(ids)


@slowly
@hypothesis.given(st.text(min_size=1))
def test_no_piece_holds_half_a_character(text):
  ids = TOKENIZER.encode(text).tolist()
  write = make_writer(TOKENIZER, [])
  pieces = [write(e).text for e in events_of(ids)]
  assert [p for p in pieces if p] == list(text)


def shown_of(pieces, stops):
  until, shown = make_stopper(stops), ''
  for i, piece in enumerate(pieces):
    text, stopped = until(piece, i == len(pieces) - 1)
    shown += text
    if stopped:
      return shown, True
  return shown, False


@slowly
@hypothesis.given(LETTERS, STOPS, st.data())
def test_stop_strings_never_appear_whatever_the_cut(text, stops, data):
  cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
  edges = [0, *cuts, len(text)]
  pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
  shown, stopped = shown_of(pieces, stops)
  assert stopped == any(stop in text for stop in stops)
  assert text.startswith(shown)
  assert not any(stop in shown for stop in stops)
  if not stopped:
    assert shown == text
  assert (shown, stopped) == shown_of([text], stops)
  assert (shown, stopped) == shown_of(list(text) or [''], stops)


@slowly
@hypothesis.given(LETTERS, STOPS)
def test_no_more_is_held_back_than_a_stop_string_may_need(text, stops):
  until, shown, before = make_stopper(stops), '', ''
  for char in text:
    more, stopped = until(char, False)
    if stopped:
      break
    shown, before = shown + more, before + char
    held = before[len(shown) :]
    assert not held or any(s.startswith(held) and s != held for s in stops)


def test_the_longest_of_the_stop_strings_that_end_together_stops():
  assert shown_of(['xab', 'cd'], ['c', 'abc', 'abcd']) == ('x', True)


@functools.cache
def engine():
  model = transformer(vocab=TOKENIZER.size, layers=2, embed=32, heads=2, mlp=64)
  weights = model.init(jax.random.key(3))
  weights['embed']['tokens'] = 10 * weights['embed']['tokens']
  return make_engine(model, weights, slots=3, length=64)


PROMPTS = ['Hello', '', 'Grüße aus', [72, 105]]


def test_results_come_by_prompt_and_answer():
  results = generate_text(engine(), TOKENIZER, PROMPTS, n=2, max_tokens=9, seed=4)
  assert [(r.prompt, r.answer) for r in results] == [
    (p, i) for p in PROMPTS for i in range(2)
  ]
  for r in results:
    assert r.text == TOKENIZER.decode(r.tokens)
    assert len(r.tokens) == len(r.logprobs) <= 9
    assert r.finish_reason == ('length' if len(r.tokens) == 9 else 'stop')
  again = generate_text(engine(), TOKENIZER, ['Hello'], max_tokens=9, seed=5)
  assert again[0].tokens == results[1].tokens


def test_an_empty_prompt_begins_with_the_start_token():
  empty, start = (
    generate_text(engine(), TOKENIZER, [p], max_tokens=5, temperature=0)[0].tokens
    for p in ('', [TOKENIZER.start])
  )
  assert empty == start


def test_a_stop_string_cuts_the_answer_across_tokens():
  settings = dict(max_tokens=40, seed=11, stop_ids=())
  (whole,) = generate_text(engine(), TOKENIZER, ['Once'], **settings)
  characters = [c for c in whole.text if c != '\N{REPLACEMENT CHARACTER}']
  assert len(characters) > 8, 'the seed gives too little text to cut'
  stop = next(
    whole.text[i : i + 2]
    for i in range(3, len(whole.text))
    if '\N{REPLACEMENT CHARACTER}' not in whole.text[i : i + 2]
  )
  (cut,) = generate_text(engine(), TOKENIZER, ['Once'], stop=stop, **settings)
  assert cut.text == whole.text[: whole.text.index(stop)]
  assert cut.finish_reason == 'stop'
  assert cut.tokens == whole.tokens[: len(cut.tokens)]
  assert len(cut.tokens) < 40


def test_the_stream_joins_to_the_results():
  settings = dict(max_tokens=12, n=2, seed=3, stop=['e', 'st'])
  results = generate_text(engine(), TOKENIZER, PROMPTS, **settings)
  texts = {}
  for piece in stream_text(engine(), TOKENIZER, PROMPTS, **settings):
    name = (piece.prompt, piece.answer)
    assert texts.get(name, ('', None))[1] is None, 'a piece after the last one'
    texts[name] = (texts.get(name, ('', None))[0] + piece.text, piece.finish_reason)
  assert list(texts[k] for k in sorted(texts)) == [
    (r.text, r.finish_reason) for r in results
  ]


def test_a_stop_id_gives_no_text():
  settings = dict(max_tokens=20, temperature=0)
  (whole,) = generate_text(engine(), TOKENIZER, ['ab'], stop_ids=(), **settings)
  end = whole.tokens[4]
  (cut,) = generate_text(engine(), TOKENIZER, ['ab'], stop_ids=[end], **settings)
  place = whole.tokens.index(end)
  assert cut.tokens == whole.tokens[: place + 1]
  assert cut.text == TOKENIZER.decode(whole.tokens[:place])
  assert cut.finish_reason == 'stop'


def test_mistakes_come_before_the_first_token():
  with pytest.raises(Mistake, match=r'^prompt 2: .*context of 64'):
    stream_text(engine(), TOKENIZER, ['a', 'b' * 64])
  with pytest.raises(Mistake, match=r'^a prompt of 65 tokens'):
    stream_text(engine(), TOKENIZER, ['b' * 64])
  with pytest.raises(Mistake, match='temperature=-1'):
    stream_text(engine(), TOKENIZER, ['a'], temperature=-1)
  with pytest.raises(Mistake, match='stop'):
    stream_text(engine(), TOKENIZER, ['a'], stop=['x', ''])
