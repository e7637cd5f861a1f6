"""GPT-2's ids by the published algorithm; which tokens begin and end; mistakes."""

import itertools
import json
import random
import unicodedata

import hypothesis
import pytest
from hypothesis import strategies as st
from tokenizers import Tokenizer as Reference

from gptjax import words
from gptjax.tokenizers.hf import hf
from tests.tokenizers.specs import byte_level, llama, unigram, wordpiece

# Unicode's white space; Python's str.isspace has four more.
SPACES = {*map(chr, [*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)])}
SPACES |= {*map(chr, [0x2028, 0x2029, 0x202F, 0x205F, 0x3000])}
SUFFIXES = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def kind(char):
  if char in SPACES:
    return 's'
  category = unicodedata.category(char)[0]
  return category if category in 'LN' else 'o'


def split(text):
  """GPT-2's expression, read by hand:
  's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+
  """
  at = 0
  while at < len(text):
    suffix = next((s for s in SUFFIXES if text.startswith(s, at)), None)
    stop = at + len(suffix or '')
    if not suffix:
      stop = at + (text[at] == ' ' and kind(text[at + 1 : at + 2] or ' ') != 's')
      first = kind(text[stop])
      while stop < len(text) and kind(text[stop]) == first:
        stop += 1
      if first == 's' and stop < len(text) and stop - at > 1:
        stop -= 1  # The last space belongs to what follows.
    yield text[at:stop]
    at = stop


class GPT2:
  """Byte-level BPE as published: the merge of lowest rank, everywhere, until none."""

  def __init__(self, folder):
    self.ids = json.loads((folder / 'encoder.json').read_text())
    lines = (folder / 'vocab.bpe').read_text().split('\n')[1:]
    pairs = [tuple(line.split()) for line in lines if line]
    self.ranks = {pair: i for i, pair in enumerate(pairs)}
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    self.char = dict(zip(shown + hidden, [*shown, *range(256, 512)], strict=False))

  def encode(self, text):
    ids = []
    for word in split(text):
      parts = [chr(self.char[b]) for b in word.encode()]
      while len(parts) > 1:
        pairs = [*itertools.pairwise(parts)]
        best = min(pairs, key=lambda pair: self.ranks.get(pair, 1 << 30))
        if best not in self.ranks:
          break
        merged, i = [], 0
        while i < len(parts):
          both = tuple(parts[i : i + 2]) == best
          merged.append(''.join(parts[i : i + 1 + both]))
          i += 1 + both
        parts = merged
      ids += [self.ids[part] for part in parts]
    return ids


@pytest.fixture(scope='module')
def gpt2(shared):
  return hf(shared / 'gpt2_bpe')


def awkward_strings(count):
  """Random Unicode, spaces of all kinds, pieces of English, seeded."""
  rng = random.Random(0)
  scripts = [(32, 127), (160, 0x250), (0x370, 0x600), (0x900, 0xE00), (0x3040, 0x3200)]
  scripts += [(0x4E00, 0x9FFF), (0x1F300, 0x1F700), (0, 32), (0x2000, 0x2100)]
  bits = ["'s", "'LL", "I'm", ' the', 'ing', '  ', '\n\n', ' \t ', '\x1c', '12', ' 3.4']
  bits += ['<|endoftext|>', 'Hello', '\r\n', '\xa0', '\u3000', "don't", '!!', '\x85']
  for _ in range(count):
    parts = []
    for _ in range(rng.randrange(12)):
      if rng.random() < 0.5:
        parts.append(rng.choice(bits))
      else:
        low, high = rng.choice(scripts)
        parts.append(''.join(chr(rng.randrange(low, high)) for _ in range(3)))
    text = ''.join(parts)
    # The reference here knows the Unicode of this Python, `tokenizers` a newer one.
    yield ''.join(c for c in text if unicodedata.category(c) not in ('Cn', 'Cs'))


def test_gpt2_ids_are_those_of_the_published_algorithm(gpt2, shared):
  reference = GPT2(shared / 'gpt2_bpe')
  prose = (shared / 'tinyshakespeare' / 'input.txt').read_text()[:30_000]
  strings = [*awkward_strings(2_500), prose, *prose.split('\n\n')]
  longest = max(strings, key=len)
  for text in strings:
    assert gpt2.encode(text).tolist() == reference.encode(text), repr(text)
  assert len(gpt2.encode(longest)) < len(longest) / 3


def test_gpt2_known_ids(gpt2):
  assert gpt2.encode('Hello world').tolist() == [15496, 995]
  assert (gpt2.size, gpt2.start, gpt2.end) == (50257, 50256, 50256)
  assert dict(gpt2.controls) == {'<|endoftext|>': 50256}
  assert gpt2.piece(995) == b' world'


@pytest.mark.slow
def test_gpt2_ids_are_those_of_transformers(gpt2, shared):
  transformers = pytest.importorskip('transformers')
  folder = shared / 'gpt2_bpe'
  other = transformers.GPT2Tokenizer(
    vocab=str(folder / 'encoder.json'), merges=str(folder / 'vocab.bpe')
  )
  for text in awkward_strings(2_000):
    if '<|endoftext|>' not in text:
      assert gpt2.encode(text).tolist() == other.encode(text), repr(text)


def test_gpt2_round_trips(gpt2):
  @hypothesis.settings(max_examples=200, deadline=None, database=None)
  @hypothesis.given(st.text(st.characters(exclude_categories=['Cs'])))
  def run(text):
    ids = gpt2.encode(text).tolist()
    assert 50256 not in ids
    assert b''.join(map(gpt2.piece, ids)) == text.encode()
    assert gpt2.decode(ids) == text

  run()


def test_words_and_whole_texts_have_the_same_ids(shared, gpt2):
  """GPT-2's text is cut at spaces before `tokenizers` sees it: nothing changes."""
  reference = Reference.from_str(gpt2.files['tokenizer.json'].decode())
  reference.encode_special_tokens = True
  spaces = [*SPACES, *map(chr, range(28, 32)), '\u200b', '\ufeff', ' ', ' ', '\n']

  @hypothesis.settings(max_examples=300, deadline=None, database=None)
  @hypothesis.given(
    st.lists(st.sampled_from([*spaces, 'a', "'s", "'", '!', '1', 'é', '你'])).map(
      ''.join
    )
  )
  def run(text):
    theirs = reference.encode(text, add_special_tokens=False).ids
    assert gpt2.encode(text).tolist() == theirs

  run()


def test_start_and_end(tmp_path):
  def edges(make, **given):
    (tmp_path / 'tokenizer.json').write_text(json.dumps(make()))
    made = hf(tmp_path, **given)
    by_id = {index: name for name, index in made.controls.items()}
    return by_id[made.start], by_id[made.end]

  assert edges(byte_level) == ('<|begin_of_text|>', '<|end_of_text|>')
  assert edges(byte_level, end='<|eot_id|>') == ('<|begin_of_text|>', '<|eot_id|>')
  assert edges(llama) == ('<s>', '</s>')
  assert edges(unigram) == ('</s>', '</s>')
  assert edges(unigram, start='<pad>') == ('<pad>', '</s>')
  assert edges(wordpiece) == ('[CLS]', '[SEP]')
  with pytest.raises(words.Mistake, match=r"start=.*did you mean '\[CLS\]'"):
    edges(wordpiece, start='[CLSS]')
  with pytest.raises(words.Mistake, match='say start= and end='):
    edges(lambda: dict(byte_level(), added_tokens=[]))


def test_mistakes_are_one_clear_line(tmp_path):
  def wrong(match, path):
    with pytest.raises(words.Mistake, match=match) as caught:
      hf(path)
    assert '\n' not in str(caught.value)
    assert str(tmp_path) in str(caught.value)

  wrong('no such tokenizer', tmp_path / 'none.json')
  wrong('neither tokenizer.json nor vocab.json with merges.txt', tmp_path)
  (tmp_path / 'encoder.json').write_text('{"a": 0}')
  wrong('neither', tmp_path)
  (tmp_path / 'vocab.bpe').write_text('#version: 0.2\na b\n')
  wrong('say start= and end=', tmp_path)
  path = tmp_path / 'tokenizer.json'
  for text in ['', '{', '[]', '{}', '{"model": 3}', '{"model": {"vocab": {}}}']:
    path.write_text(text)
    wrong('damaged', path)
  made = llama()
  made['model']['merges'].append('x y')
  path.write_text(json.dumps(made))
  wrong('no tokenizer that can be run', path)
