"""Every kind of model: the ids of the reference, and no control token from text."""

import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from tokenizers import Tokenizer as Reference

from gptjax.tokenizers import store
from gptjax.tokenizers.hf import hf
from tests.tokenizers.specs import byte_level, llama, unigram, word_level, wordpiece

KINDS = [byte_level, llama, unigram, wordpiece, word_level]


@pytest.fixture(params=KINDS, ids=lambda make: make.__name__)
def file(request, tmp_path):
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps(request.param()))
  return path


def test_ordinary_text_has_the_ids_of_the_reference(file):
  ours, reference = hf(file), Reference.from_file(str(file))
  reference.no_truncation()
  for text in [
    'the cats',
    'the  the',
    '',
    ' a cat\nthe',
    'the<think>cat two words é zzz',
  ]:
    theirs = reference.encode(text, add_special_tokens=False).ids
    assert ours.encode(text).tolist() == theirs, repr(text)
  assert ours.size == max(reference.get_vocab().values()) + 1


def test_no_text_gives_a_control_token(file):
  ours = hf(file)
  controls = set(ours.controls.values())
  names = list(ours.controls)
  assert len(names) >= 2

  bits = [*names, *(n[:-1] for n in names), *(n[1:] for n in names), ' ', 'the', '\n']
  bits += [f'\U0010ffff{i}' for i in controls] + ['\U0010ffff', '[UNK]', '<unk>', '<']

  @hypothesis.settings(max_examples=300, deadline=None, database=None)
  @hypothesis.given(st.lists(st.sampled_from(bits)).map(''.join))
  def run(text):
    assert not controls & set(ours.encode(text).tolist())

  run()
  for name in names:  # The reference does give them: the test can fail.
    theirs = Reference.from_file(str(file)).encode(name, add_special_tokens=False).ids
    assert ours.controls[name] in theirs


def test_decoding_is_that_of_the_reference(file):
  ours, reference = hf(file), Reference.from_file(str(file))
  for text in ['the cat', 'cat the cat', 'the']:
    ids = ours.encode(text)
    assert ours.decode(ids) == reference.decode(ids.tolist())
    pieces = b''.join(map(ours.piece, ids.tolist()))
    assert pieces.decode().removeprefix(' ') == ours.decode(ids)


@pytest.mark.parametrize('make', [byte_level, llama])
def test_models_with_all_bytes_round_trip(make, tmp_path):
  (tmp_path / 'tokenizer.json').write_text(json.dumps(make()))
  ours = hf(tmp_path)

  @hypothesis.settings(max_examples=200, deadline=None, database=None)
  @hypothesis.given(
    st.lists(
      st.sampled_from(['</s>', '<s>', 'the', ' ', '<|end_of_text|>', 'two words', '\n'])
      | st.text(st.characters(exclude_categories=['Cs']), max_size=3)
    ).map(''.join)
  )
  def run(text):
    text = text.replace('\u2581', '_') if make is llama else text
    assert ours.decode(ours.encode(text)) == text

  run()


def test_saved_it_is_whole_for_others(file, tmp_path):
  ours = hf(file, controls=['<|user|>'])
  ours.save(tmp_path / 'saved')
  again = store.load(tmp_path / 'saved')
  assert (again.digest, again.start, again.end) == (ours.digest, ours.start, ours.end)
  text = 'the cats <|user|> [CLS] </s>'
  np.testing.assert_array_equal(again.encode(text), ours.encode(text))
  reference = Reference.from_file(str(tmp_path / 'saved' / 'tokenizer.json'))
  for name, index in ours.controls.items():
    assert reference.token_to_id(name) == index


def test_controls_that_the_file_lacks_come_last(file):
  plain, more = hf(file), hf(file, controls=['<|user|>', '<|turn|>'])
  assert more.controls['<|user|>'] == plain.size
  assert more.controls['<|turn|>'] == plain.size + 1
  assert more.size == plain.size + 2
  text = 'the <|user|> cat'
  assert not {plain.size, plain.size + 1} & set(more.encode(text).tolist())
  np.testing.assert_array_equal(more.encode(text), plain.encode(text))


def test_text_that_the_file_adds_can_be_made_a_control(tmp_path):
  (tmp_path / 'tokenizer.json').write_text(json.dumps(byte_level()))
  plain, more = hf(tmp_path), hf(tmp_path, controls=['<think>'])
  index = more.controls['<think>']
  assert index in plain.encode('a<think>')
  assert plain.piece(index) == b'<think>'
  assert index not in more.encode('a<think>')
  assert more.piece(index) == b''
  assert more.decode(more.encode('a<think>')) == 'a<think>'


def test_a_long_text_is_not_cut_and_nothing_is_drawn(tmp_path):
  """The file says at most 8 tokens, and dropout."""
  made = byte_level()
  made['model'] |= dict(dropout=0.5, ignore_merges=False)
  (tmp_path / 'tokenizer.json').write_text(json.dumps(made))
  ours = hf(tmp_path)
  assert len(ours.encode('the ' * 50)) == 51
  assert ours.decode(ours.encode('the ' * 50)) == 'the ' * 50
