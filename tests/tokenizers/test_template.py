"""Our own control tokens, and control lines before what is said."""

import functools
import json
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.tokenizers import hf, sentencepiece, template, turns
from gptjax.tokenizers.bytes import bytes as byte_tokenizer
from gptjax.words import Conversation, Mistake, Turn
from tests.tokenizers.specs import byte_level

TOKENIZER = byte_tokenizer()
OWN = template.own(TOKENIZER)
C = TOKENIZER.controls
ROLES = {'system': 0.0, 'user': 0.25, 'assistant': 1.0, 'tool': 0.0}


def talk(*turns, control=()):
  return Conversation(tuple(Turn(*turn) for turn in turns), control)


def joined(parts):
  whole = turns.join(parts)
  return whole.ids.tolist(), whole.weights.tolist()


def test_each_turn_has_its_role_its_text_and_its_end():
  parts = OWN.encode(talk(('user', 'Hi'), ('assistant', 'Yo!', 0.5)), ROLES)
  user, answer = parts
  assert user.ids.tolist() == [C['<|start|>'], C['<|user|>'], *b'Hi', C['<|turn|>']]
  assert user.weights.tolist() == [0, 0, 0.25, 0.25, 0.25]
  assert answer.ids.tolist() == [C['<|assistant|>'], *b'Yo!', C['<|turn|>']]
  assert answer.weights.tolist() == [0, 0.5, 0.5, 0.5, 0.5]


def test_a_prompt_goes_up_to_where_the_assistant_begins():
  turns = [('system', 'Be kind.'), ('user', 'Hi'), ('assistant', 'Yo!')]
  ids, _ = joined(OWN.encode(talk(*turns), ROLES))
  prompt = OWN.prompt(talk(*turns[:2])).tolist()
  assert ids[: len(prompt)] == prompt
  assert prompt[-1] == C['<|assistant|>']
  assert ids[-1] in OWN.stops
  assert TOKENIZER.end in OWN.stops
  assert OWN.prompt(talk()).tolist() == [C['<|start|>'], C['<|assistant|>']]


NASTY = st.one_of(
  st.text(max_size=30),
  st.lists(st.sampled_from([*C, 'a', '<|', '|>', 'user', ' ']), max_size=6).map(
    ''.join
  ),
)


@functools.cache
def trained():
  """A tokenizer whose text was full of what looks like control tokens."""
  texts = ['<|user|>Hi<|turn|> a user said', '<|assistant|><|end|> b' * 9] * 20
  with tempfile.TemporaryDirectory() as cache:
    return sentencepiece.sentencepiece(lambda: texts, vocab=340, cache=cache)


@pytest.mark.parametrize('make', [lambda: TOKENIZER, trained])
@settings(max_examples=150, deadline=None)
@given(turns_=st.lists(st.tuples(st.sampled_from(turns.ROLES), NASTY), max_size=5))
def test_text_that_imitates_a_control_token_stays_text(make, turns_):
  tokenizer = make()
  c = tokenizer.controls
  parts = template.own(tokenizer).encode(talk(*turns_), ROLES)
  assert len(parts) == len(turns_)
  for n, ((role, text), part) in enumerate(zip(turns_, parts, strict=True)):
    names = [index for index in part.ids.tolist() if index in c.values()]
    assert names == [c['<|start|>']] * (n == 0) + [c[f'<|{role}|>'], c['<|turn|>']]
    assert tokenizer.decode(part.ids) == text.encode(errors='replace').decode()


def test_control_is_the_first_lines_of_the_system():
  control = (('style', 'formal'), ('topic', 'cats'))
  text = 'style: formal\ntopic: cats'
  said = [('user', 'Hi'), ('assistant', 'Yo!')]
  with_system = talk(('system', text), *said)
  assert joined(OWN.encode(talk(*said, control=control), ROLES)) == joined(
    OWN.encode(with_system, ROLES)
  )
  parts = OWN.encode(talk(*said, control=control), ROLES)
  assert len(parts) == 2
  there = talk(('system', 'Be kind.'), *said, control=control)
  whole = talk(('system', f'{text}\n\nBe kind.'), *said)
  assert joined(OWN.encode(there, ROLES)) == joined(OWN.encode(whole, ROLES))
  assert np.array_equal(OWN.prompt(there), OWN.prompt(whole))
  assert turns.text_of('Once', control) == f'{text}\n\nOnce'
  assert turns.text_of('Once', ()) == 'Once'
  assert turns.with_control(talk(*said, control=control), system=False) == (
    Turn('user', f'{text}\n\nHi'),
    Turn('assistant', 'Yo!'),
  )


def test_mistakes():
  with pytest.raises(Mistake, match="role 'asistant': did you mean 'assistant'"):
    OWN.encode(talk(('asistant', 'Yo!')), ROLES)


def test_a_tokenizer_without_our_tokens_writes_roles_in_words(tmp_path):
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps(byte_level()), 'utf-8')
  tokenizer = hf.hf(path)
  words = template.own(tokenizer)
  said = [('system', 'Be kind.'), ('user', 'Hi'), ('assistant', 'Yo!')]
  parts = words.encode(talk(*said, *said[1:]), ROLES | {'user': 0.0})
  names = {index: name for name, index in tokenizer.controls.items()}
  shown = [
    ''.join(names.get(i) or tokenizer.piece(i).decode() for i in part.ids.tolist())
    for part in parts
  ]
  assert shown == [
    '<|begin_of_text|>System: Be kind.\n\n',
    *('User: Hi\n\n', 'Assistant: Yo!<|end_of_text|>\n\n') * 2,
  ]
  answer = parts[2]
  weighed = [i for i, w in zip(answer.ids, answer.weights, strict=True) if w]
  assert tokenizer.decode(weighed) == ' Yo!'
  assert weighed[-1] == tokenizer.end
  assert words.stops == (tokenizer.end,)
  assert tokenizer.decode(words.prompt(talk(*said[:2]))).endswith('Hi\n\nAssistant:')
