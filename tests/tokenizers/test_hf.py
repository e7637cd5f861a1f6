"""Ids of the reference, and control tokens that no text can give."""

import itertools
import json
import random
import unicodedata

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from tokenizers import Tokenizer as Reference

from gptjax import words
from gptjax.tokenizers import store
from gptjax.tokenizers.hf import hf

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


# Small files of every kind of model. Each is what `tokenizers` itself would read.


def added(index, content, special=True):
  flags = dict.fromkeys(['single_word', 'lstrip', 'rstrip', 'normalized'], False)
  return dict(id=index, content=content, special=special, **flags)


def spec(model, added_tokens, **parts):
  empty = dict.fromkeys(
    [
      'truncation',
      'padding',
      'normalizer',
      'pre_tokenizer',
      'post_processor',
      'decoder',
    ]
  )
  return dict(empty, version='1.0', added_tokens=added_tokens, model=model, **parts)


def table(names):
  return {name: i for i, name in enumerate(dict.fromkeys(names))}


ALPHABET = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 324)]]
BYTE_LEVEL = dict(type='ByteLevel', add_prefix_space=False, trim_offsets=True)


def byte_level(**more):
  """Shaped like Llama 3: the vocabulary is looked into before the merges."""
  vocab = table([*ALPHABET, 'th', 'the', '<|end_of_text|>', 'Ġthe'])
  n = len(vocab)
  return spec(
    dict(type='BPE', vocab=vocab, merges=['t h', 'th e', 'Ġ the'], ignore_merges=True),
    [
      added(vocab['<|end_of_text|>'], '<|end_of_text|>'),
      added(n, '<|begin_of_text|>'),
      added(n + 1, '<think>', special=False),
      added(n + 2, '<|eot_id|>'),
      added(n + 3, 'two words', special=False),
    ],
    pre_tokenizer=dict(
      type='Sequence',
      pretokenizers=[
        dict(
          type='Split',
          pattern={'Regex': r' ?\S+|\s'},
          behavior='Isolated',
          invert=False,
        ),
        dict(BYTE_LEVEL, use_regex=False),
      ],
    ),
    decoder=BYTE_LEVEL,
    truncation=dict(direction='Right', max_length=8, strategy='LongestFirst', stride=0),
    **more,
  )


def llama():
  """Shaped like Llama 2: U+2581 for a space, one before the text, bytes as fallback."""
  byte_names = [f'<0x{b:02X}>' for b in range(256)]
  letters = [*'\u2581thecaslo</>', '</', 's>', 'th', 'the', '\u2581the', '</s']
  model = dict(
    type='BPE',
    unk_token='<unk>',
    byte_fallback=True,
    fuse_unk=True,
    vocab=table(['<unk>', '<s>', '</s>', *byte_names, *letters]),
    # Merges that lead to control tokens, as conversions write them.
    merges=[
      '< /',
      's >',
      '</ s>',
      't h',
      'th e',
      '\u2581 the',
      '< s>',
      '</ s',
      '</s >',
    ],
  )
  special = [added(i, name) for i, name in enumerate(['<unk>', '<s>', '</s>'])]
  prepend = dict(type='Prepend', prepend='\u2581')
  replace = dict(type='Replace', pattern={'String': ' '}, content='\u2581')
  back = dict(type='Replace', pattern={'String': '\u2581'}, content=' ')
  strip = dict(type='Strip', content=' ', start=1, stop=0)
  kinds = [back, dict(type='ByteFallback'), dict(type='Fuse'), strip]
  return spec(
    model,
    special,
    normalizer=dict(type='Sequence', normalizers=[prepend, replace]),
    decoder=dict(type='Sequence', decoders=kinds),
  )


def unigram():
  """Shaped like T5: control tokens are pieces with the best score of all."""
  letters = [*'\u2581thecaslo</>', '\u2581the', 'cat']
  vocab = [['<pad>', 0.0], ['</s>', 0.0], ['<unk>', 0.0]]
  vocab += [[c, -3.0 - i / 10] for i, c in enumerate(letters)]
  special = [added(i, name) for i, (name, _) in enumerate(vocab[:3])]
  meta = dict(
    type='Metaspace', replacement='\u2581', prepend_scheme='always', split=True
  )
  return spec(
    dict(type='Unigram', unk_id=2, vocab=vocab, byte_fallback=False),
    [*special, added(len(vocab), '<extra_0>')],
    pre_tokenizer=meta,
    decoder=meta,
  )


def wordpiece():
  names = [
    '[PAD]',
    '[UNK]',
    '[CLS]',
    '[SEP]',
    '[',
    ']',
    'CLS',
    'the',
    'cat',
    '##s',
    'a',
  ]
  model = dict(
    type='WordPiece',
    unk_token='[UNK]',
    continuing_subword_prefix='##',
    max_input_chars_per_word=100,
    vocab=table(names),
  )
  special = [added(i, name) for i, name in enumerate(names[:4])]
  return spec(
    model,
    special,
    pre_tokenizer=dict(type='Whitespace'),
    decoder=dict(type='WordPiece', prefix='##', cleanup=False),
  )


def word_level():
  names = ['[UNK]', '<s>', '</s>', 'the', 'cat']
  special = [added(i, name) for i, name in enumerate(names[:3])]
  return spec(
    dict(type='WordLevel', vocab=table(names), unk_token='[UNK]'),
    special,
    pre_tokenizer=dict(type='WhitespaceSplit'),
  )


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


def test_a_long_text_is_not_cut_and_nothing_is_drawn(tmp_path):
  """The file says at most 8 tokens, and dropout."""
  made = byte_level()
  made['model'] |= dict(dropout=0.5, ignore_merges=False)
  (tmp_path / 'tokenizer.json').write_text(json.dumps(made))
  ours = hf(tmp_path)
  assert len(ours.encode('the ' * 50)) == 51
  assert ours.decode(ours.encode('the ' * 50)) == 'the ' * 50


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
  wrong('no tokenizer that can be read', path)


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
