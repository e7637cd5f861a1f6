"""What is written of a tokenizer gives its ids on 10,000 strings, and them back."""

import itertools
import json
import re

import numpy as np
import pytest
import tokenizers as reference

from gptjax.interop import bpe, gguf_tokenizer, tokenizer_json
from gptjax.tokenizers.bytes import bytes as byte_tokens
from gptjax.tokenizers.chars import chars
from gptjax.tokenizers.hf import from_spec, hf
from gptjax.tokenizers.sentencepiece import sentencepiece
from gptjax.words import Mistake
from tests.interop.strings import HAN, code, strings
from tests.tokenizers import specs

CONTROLS = ['<|code|>']


@pytest.fixture(scope='module')
def corpus():
  return [*code(), HAN * 20, ' naïve café\n' * 30, 'a banana an ananas ' * 50]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('trained')


@pytest.fixture(scope='module')
def made(corpus, folder):
  """Makes a tokenizer of a kind, once."""

  def trained(model, vocab):
    return sentencepiece(
      lambda: corpus, vocab=vocab, model=model, controls=CONTROLS, cache=folder
    )

  makers = {
    'bytes': lambda: byte_tokens(CONTROLS),
    'chars': lambda: chars(lambda: [*strings(), 'a'], CONTROLS),
    'ascii': lambda: chars(lambda: [''.join(map(chr, range(128)))], CONTROLS),
    'bpe': lambda: trained('bpe', 1200),
    'bpe_small': lambda: trained('bpe', 340),
    'unigram': lambda: trained('unigram', 900),
    'unigram_small': lambda: trained('unigram', 330),
  }
  known = {}

  def make(kind):
    if kind not in known:
      known[kind] = makers[kind]()
    return known[kind]

  return make


KINDS = ('bytes', 'chars', 'bpe', 'bpe_small', 'unigram', 'unigram_small')


def others(tokenizer, count=20_000):
  """Strings made of the tokenizer's own pieces: where merges compete."""
  rng = np.random.default_rng(0)
  pieces = [tokenizer.piece(i).decode('utf-8', 'ignore') for i in range(tokenizer.size)]
  sizes = rng.integers(1, 20, count)
  return [''.join(rng.choice(pieces, size)) for size in sizes]


def check(tokenizer, run, texts):
  """That a reference tokenizer gives our ids, and decodes them."""
  run.encode_special_tokens = True
  for text in texts:
    ids = tokenizer.encode(text).tolist()
    assert run.encode(text, add_special_tokens=False).ids == ids, repr(text[:300])
    assert run.decode(ids, skip_special_tokens=True) == text, repr(text[:300])


@pytest.mark.parametrize('kind', KINDS)
def test_a_tokenizer_json_gives_our_ids(made, kind):
  tokenizer = made(kind)
  run = reference.Tokenizer.from_str(json.dumps(tokenizer_json.spec_of(tokenizer)))
  check(tokenizer, run, strings())
  if kind != 'chars':
    check(tokenizer, run, others(tokenizer))
  assert run.get_vocab_size() == tokenizer.size
  for name, index in tokenizer.controls.items():
    assert run.token_to_id(name) == index
    run.encode_special_tokens = False
    assert run.encode(name, add_special_tokens=False).ids == [index]
  # A prompt begins as ours do.
  assert run.encode('a').ids == [tokenizer.start, *tokenizer.encode('a')]


@pytest.mark.parametrize('kind', KINDS)
def test_it_is_read_back_to_the_same_ids(made, kind):
  tokenizer = made(kind)
  again = from_spec(tokenizer_json.spec_of(tokenizer), kind)
  assert (again.start, again.end, again.size) == (
    tokenizer.start,
    tokenizer.end,
    tokenizer.size,
  )
  assert again.controls == tokenizer.controls
  for text in strings()[:2000]:
    ids = again.encode(text)
    np.testing.assert_array_equal(ids, tokenizer.encode(text))
    assert again.decode(ids) == text


def test_a_unigram_of_other_scores_is_refused(made, monkeypatch):
  monkeypatch.setattr(tokenizer_json.sentencepiece, 'GRAIN', 1)
  with pytest.raises(Mistake, match='no multiples of 1/64'):
    tokenizer_json.spec_of(made('unigram'))


@pytest.mark.parametrize('kind', ['bytes', 'ascii', 'bpe', 'bpe_small'])
@pytest.mark.parametrize('whole', [True, False])
def test_gguf_gives_our_ids(made, kind, whole):
  """With the tokenizer.json in it, and from what llama.cpp reads."""
  tokenizer = made(kind)
  told = gguf_tokenizer.write(tokenizer, tokenizer.size + 3)
  told |= {f'tokenizer.ggml.{k}_token_id': v for k, v in edges(tokenizer).items()}
  if not whole:
    del told[gguf_tokenizer.HF_JSON]
  again = gguf_tokenizer.read(told, 'x.gguf')
  assert again.start == tokenizer.start
  assert again.end == tokenizer.end
  assert again.controls == tokenizer.controls
  for text in strings():
    if kind == 'ascii' and not text.isascii():
      continue
    ids = again.encode(text)
    np.testing.assert_array_equal(ids, tokenizer.encode(text), repr(text[:300]))
    assert again.decode(ids) == text


def llama_cpp(told, text):
  """As llama.cpp runs a sentencepiece file (llm_tokenizer_spm), written down anew.

  Spaces become U+2581; of all neighbours whose union is a token the one with the best
  score is joined, the leftmost of equals; what is no token goes to its bytes.
  """
  ids = {piece: i for i, piece in enumerate(told['tokenizer.ggml.tokens'])}
  scores = told['tokenizer.ggml.scores']
  parts = [*text.replace(' ', '\u2581')]
  while True:
    pairs = [a + b for a, b in itertools.pairwise(parts)]
    known = [(-scores[ids[pair]], i) for i, pair in enumerate(pairs) if pair in ids]
    if not known:
      break
    _, i = min(known)
    parts[i : i + 2] = [pairs[i]]
  found = []
  for part in parts:
    whole = part in ids
    names = [part] if whole else [f'<0x{byte:02X}>' for byte in part.encode()]
    found += [ids[name] for name in names]
  return found


@pytest.mark.parametrize('kind', ['bpe', 'bpe_small'])
def test_llama_cpp_would_give_our_ids(made, kind):
  tokenizer = made(kind)
  told = gguf_tokenizer.write(tokenizer, tokenizer.size)
  assert told['tokenizer.ggml.model'] == 'llama'
  assert told['tokenizer.ggml.add_space_prefix'] is False
  tried = 0
  for text in [*strings(), *others(tokenizer, 2000)]:
    if '\u2581' not in text and len(text) <= 80:
      tried += 1
      assert llama_cpp(told, text) == tokenizer.encode(text).tolist(), repr(text)
  assert tried > 5000


def edges(tokenizer):
  return {'bos': tokenizer.start, 'eos': tokenizer.end}


def test_what_gguf_has_no_words_for_is_refused(made):
  with pytest.raises(Mistake, match='no unigram tokenizer that falls back'):
    gguf_tokenizer.write(made('unigram'), 10_000)
  with pytest.raises(Mistake, match='no tokenizer of characters such as'):
    gguf_tokenizer.write(made('chars'), 100_000)
  with pytest.raises(Mistake, match='has 1200 ids, the model 1000 rows'):
    gguf_tokenizer.write(made('bpe'), 1000)
  for spec in (specs.byte_level(), specs.unigram(), specs.wordpiece()):
    with pytest.raises(Mistake, match='--target=hf:DIR'):
      gguf_tokenizer.write(from_spec(spec, 'x'), 10_000)


SPLITS = {'gpt-2': None, 'smollm': 'Digits', 'llama-bpe': 'Split'}


@pytest.mark.parametrize('pre', SPLITS)
def test_how_text_is_cut_is_said_by_a_name(pre):
  cut, whole = gguf_tokenizer.PRE[pre]
  spec = specs.byte_level()
  spec['model']['ignore_merges'] = whole
  # Files differ in what changes no ids: a sequence of one, trim_offsets.
  level = {**cut, 'trim_offsets': False} if cut['type'] == 'ByteLevel' else cut
  spec['pre_tokenizer'] = dict(type='Sequence', pretokenizers=[level])
  tokenizer = from_spec(spec, 'x')
  told = gguf_tokenizer.write(tokenizer, tokenizer.size)
  assert told['tokenizer.ggml.pre'] == pre
  told |= {f'tokenizer.ggml.{k}_token_id': v for k, v in edges(tokenizer).items()}
  del told[gguf_tokenizer.HF_JSON]
  again = gguf_tokenizer.read(told, 'x.gguf')
  for text in strings(2000):
    np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))


def test_an_exported_sentencepiece_goes_on_to_gguf(made):
  """hf -> run -> gguf of a tokenizer that was ours."""
  first = made('bpe')
  second = from_spec(tokenizer_json.spec_of(first), 'x')
  told = gguf_tokenizer.write(second, second.size)
  own = gguf_tokenizer.write(first, first.size)
  for key in ('model', 'tokens', 'add_space_prefix', 'add_bos_token'):
    assert told[f'tokenizer.ggml.{key}'] == own[f'tokenizer.ggml.{key}']
  del told[gguf_tokenizer.HF_JSON]
  told |= {f'tokenizer.ggml.{k}_token_id': v for k, v in edges(first).items()}
  again = gguf_tokenizer.read(told, 'x.gguf')
  for text in strings(3000):
    np.testing.assert_array_equal(again.encode(text), first.encode(text))


def test_a_piece_merged_at_two_places_of_the_order_is_refused(made):
  spec = tokenizer_json.spec_of(made('bpe'))
  spec['model']['merges'].append(spec['model']['merges'][0][:])
  with pytest.raises(Mistake, match='merged at several places'):
    gguf_tokenizer.write(from_spec(spec, 'x'), 10_000)


def test_a_space_before_the_text_is_kept():
  pieces = ['<unk>', '<s>', '</s>', *(f'<0x{b:02X}>' for b in range(256))]
  pieces += ['\u2581', 'a', 'b', '\u2581a', 'ab', '\u2581ab']
  types = [2, 3, 3, *256 * [6], *6 * [1]]
  told = {
    'tokenizer.ggml.model': 'llama',
    'tokenizer.ggml.tokens': pieces,
    'tokenizer.ggml.token_type': types,
    'tokenizer.ggml.scores': [*259 * [0.0], -9.0, -9.0, -9.0, -1.0, -2.0, -3.0],
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
  }
  tokenizer = gguf_tokenizer.read(told, 'x')
  assert [tokenizer.piece(i) for i in tokenizer.encode('ab ab\u2581')] == [
    *(b' ab', b' ab', b'\xe2', b'\x96', b'\x81'),
  ]
  assert tokenizer.decode(tokenizer.encode('ab ab\u2581')) == 'ab ab\u2581'
  told['tokenizer.ggml.add_space_prefix'] = False
  assert len(gguf_tokenizer.read(told, 'x').encode('ab')) == 1
  told['tokenizer.ggml.model'] = 't5'
  with pytest.raises(Mistake, match=re.escape("tokenizer.ggml.model='t5'")):
    gguf_tokenizer.read(told, 'x')


def test_of_pieces_that_overlap_the_left_one_is_joined():
  """aba|ba and ab|aba: as sentencepiece joins them, from the left."""
  scores = {'a': -9.0, 'b': -8.0, 'ab': -1.0, 'aba': -2.0, 'ababa': -3.0, 'ba': -1.5}
  pairs = bpe.merges(scores)
  assert pairs.index(('ab', 'a')) < pairs.index(('a', 'ba'))
  assert pairs.index(('ab', 'aba')) < pairs.index(('aba', 'ba'))
  assert pairs.index(('a', 'b')) == 0


@pytest.mark.slow
def test_the_real_vocabularies_of_gpt2(shared):
  tokenizer = hf(shared / 'gpt2_bpe')
  told = gguf_tokenizer.write(tokenizer, tokenizer.size)
  told |= {f'tokenizer.ggml.{k}_token_id': v for k, v in edges(tokenizer).items()}
  assert told['tokenizer.ggml.pre'] == 'gpt-2'
  del told[gguf_tokenizer.HF_JSON]
  again = gguf_tokenizer.read(told, 'x')
  spec = json.dumps(tokenizer_json.spec_of(tokenizer))
  run = reference.Tokenizer.from_str(spec)
  texts = strings()
  check(tokenizer, run, texts)
  for text in texts:
    np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))
