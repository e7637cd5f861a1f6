"""What holds for every tokenizer: lossless, safe from imitation, kept whole."""

import inspect
import json
import multiprocessing
import pickle
import threading

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gptjax import words
from gptjax.tokenizers import store
from gptjax.tokenizers.bytes import bytes as byte_tokenizer
from gptjax.tokenizers.chars import chars
from gptjax.tokenizers.hf import hf
from gptjax.tokenizers.sentencepiece import sentencepiece
from tests import fakefs

# Real text, and what tokenizers trip over: tabs, CRLF, double spaces, other scripts.
PROSE = inspect.getsource(store) + ''.join(
  f'Line {n}:\tthe old cat,  "{a}" it said;\r\n\n  {a}你好{n}\n'
  for n in range(40)
  for a in ('why', 'ça va', 'привет')
)
STRINGS = [
  '',
  ' ',
  '  two  spaces  ',
  '\n',
  '\n\n\n a\n b \n',
  'tab\tand\r\nCRLF\rCR\x0bVT\x0cFF\x85NEL\u2028LS\u2029PS',
  'nul\0nul',
  '\u2581',
  ' \u2581 \u2581\u2581x\u2581\n\u2581',
  '\u2585\u2047\ufeff\ufffe\uffff\ufffd\U0010ffff',
  '\ufeffa mark before',
  'e\u0301 \u00e9 \u1100\u1161 \U0001f469\u200d\U0001f680',
  '<unk><s></s><0x0A>&#10;%0A\\n',
  'x' * 2000 + ' ' * 200 + '\n' * 200,
  ''.join(store.CONTROLS),
  'a<|user|>b <|end|>\n<|turn|>',
  '<|endoftext|>',
]
valid = st.text(st.characters(exclude_categories=['Cs']))
spiced = st.lists(
  st.sampled_from([' ', '\n', '\u2581', '\0', '\t', '\r\n', '<|user|>', 'the ', ' cat'])
  | st.text(st.characters(exclude_categories=['Cs']), max_size=4)
).map(''.join)


@pytest.fixture(scope='module')
def gpt2_files(tmp_path_factory):
  """GPT-2's pair of files in small: all bytes, two merges, one control token."""
  folder = tmp_path_factory.mktemp('gpt2')
  own = [*range(33, 127), *range(161, 173), *range(174, 256)]
  alphabet = [chr(b) for b in own] + [chr(256 + i) for i in range(256 - len(own))]
  names = [*alphabet, 'th', 'the', '<|endoftext|>']
  (folder / 'encoder.json').write_text(json.dumps({n: i for i, n in enumerate(names)}))
  (folder / 'vocab.bpe').write_text('#version: 0.2\nt h\nth e\n')
  return folder


@pytest.fixture(scope='module')
def tokenizers(tmp_path_factory, gpt2_files):
  cache = tmp_path_factory.mktemp('cache')
  return {
    'bytes': byte_tokenizer(),
    'bpe': sentencepiece(lambda: [PROSE], 400, cache=cache),
    'unigram': sentencepiece(lambda: [PROSE], 320, 'unigram', cache=cache),
    'hf': hf(gpt2_files),
    'chars': chars(lambda: [PROSE]),
  }


FREE = ('bytes', 'bpe', 'unigram', 'hf')  # Take any string.
ALL = (*FREE, 'chars')


def check(tokenizer, text):
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32
  assert ids.ndim == 1
  assert ids.flags.writeable
  assert not set(ids.tolist()) & set(tokenizer.controls.values())
  assert b''.join(map(tokenizer.piece, ids.tolist())) == text.encode()
  assert tokenizer.decode(ids) == text


@pytest.mark.parametrize('name', FREE)
@pytest.mark.parametrize('text', STRINGS)
def test_strings_that_tokenizers_get_wrong_round_trip(tokenizers, name, text):
  check(tokenizers[name], text)


@pytest.mark.parametrize('name', FREE)
def test_any_string_round_trips(tokenizers, name):
  @hypothesis.settings(max_examples=300, deadline=None, database=None)
  @hypothesis.given(valid | spiced)
  def run(text):
    check(tokenizers[name], text)

  run()


@pytest.mark.parametrize('name', FREE)
def test_every_character_of_the_basic_plane_round_trips(tokenizers, name):
  points = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 41)]
  for first in range(0, len(points), 50_000):
    text = ''.join(map(chr, points[first : first + 50_000]))
    assert tokenizers[name].decode(tokenizers[name].encode(text)) == text


def test_characters_round_trip_as_far_as_they_are_known(tokenizers):
  tokenizer = tokenizers['chars']
  check(tokenizer, PROSE)
  check(tokenizer, '')
  assert tokenizer.size == len(set(PROSE)) + len(store.CONTROLS)
  with pytest.raises(words.Mistake, match=r"'€' \(U\+20AC\)"):
    tokenizer.encode('the € sign')
  with pytest.raises(words.Mistake, match=r'U\+1F600'):  # Above all known ones.
    tokenizer.encode('the \U0001f600')
  with pytest.raises(words.Mistake, match='empty'):
    chars(lambda: ['', ''])


@pytest.mark.parametrize('name', FREE)
def test_surrogates_become_what_unicode_has_for_them(tokenizers, name):
  def read_back(text):
    return tokenizers[name].decode(tokenizers[name].encode(text))

  assert read_back('a\ud800b\udfff') == 'a\ufffdb\ufffd'
  assert read_back('\ud83d\ude00 \ud83d') == '\U0001f600 \ufffd'


@pytest.mark.parametrize('name', ALL)
def test_controls_are_ids_of_their_own(tokenizers, name):
  tokenizer = tokenizers[name]
  ids = list(tokenizer.controls.values())
  assert len(set(ids)) == len(ids)
  assert {tokenizer.start, tokenizer.end} <= set(ids)
  assert all(0 <= i < tokenizer.size and tokenizer.piece(i) == b'' for i in ids)
  if name != 'hf':
    assert list(tokenizer.controls) == list(store.CONTROLS)
    assert tokenizer.start == tokenizer.controls['<|start|>']
    assert tokenizer.end == tokenizer.controls['<|end|>']
  text = tokenizer.encode('the cat')
  mixed = [tokenizer.start, *text[:3].tolist(), *ids, *text[3:].tolist(), tokenizer.end]
  assert tokenizer.decode(mixed) == 'the cat'


def test_every_id_but_the_controls_has_bytes(tokenizers):
  for name in ALL:
    tokenizer = tokenizers[name]
    empty = {i for i in range(tokenizer.size) if not tokenizer.piece(i)}
    unknown = {0} if name in ('bpe', 'unigram') else set()  # Sentencepiece's own.
    assert empty == set(tokenizer.controls.values()) | unknown


def test_ids_outside_are_refused_not_wrapped(tokenizers):
  for index in (-1, tokenizers['bytes'].size):
    with pytest.raises(IndexError, match='ids 0 to 265'):
      tokenizers['bytes'].decode([index])


def test_cut_characters_decode_to_the_replacement(tokenizers):
  ids = tokenizers['bytes'].encode('é')
  assert tokenizers['bytes'].decode(ids[:1]) == '\ufffd'


def test_further_controls_come_after_the_usual_ones():
  tokenizer = byte_tokenizer(controls=['<|code|>'])
  assert tokenizer.controls['<|code|>'] == 266
  assert tokenizer.digest != byte_tokenizer().digest
  for wrong in (['<|user|>'], [''], ['a', 'a'], [3]):
    with pytest.raises(words.Mistake, match='control token'):
      byte_tokenizer(controls=wrong)


@pytest.mark.parametrize('name', ALL)
def test_saved_and_loaded_is_the_same(tokenizers, name, tmp_path):
  tokenizer = tokenizers[name]
  tokenizer.save(tmp_path / 'run' / 'tokenizer')
  again = store.load(tmp_path / 'run' / 'tokenizer')
  for key in ('name', 'size', 'start', 'end', 'digest'):
    assert getattr(again, key) == getattr(tokenizer, key)
  assert dict(again.controls) == dict(tokenizer.controls)
  np.testing.assert_array_equal(again.encode(PROSE), tokenizer.encode(PROSE))
  assert [again.piece(i) for i in range(again.size)] == list(tokenizer.pieces)
  # Saved over itself: nothing is left beside the files.
  before = sorted(p.name for p in (tmp_path / 'run' / 'tokenizer').iterdir())
  again.save(str(tmp_path / 'run' / 'tokenizer'))
  assert sorted(p.name for p in (tmp_path / 'run' / 'tokenizer').iterdir()) == before
  meta = json.loads((tmp_path / 'run' / 'tokenizer' / 'meta.json').read_text())
  assert (meta['size'], meta['digest']) == (tokenizer.size, tokenizer.digest)


@pytest.mark.parametrize('name', ['bpe', 'hf', 'chars'])
def test_any_flipped_bit_is_found(tokenizers, name, tmp_path):
  tokenizers[name].save(tmp_path)
  rng = np.random.default_rng(0)
  for file in tokenizers[name].files:
    good = (tmp_path / file).read_bytes()
    for at in rng.integers(len(good), size=20):
      bad = bytearray(good)
      bad[at] ^= 1 << int(rng.integers(8))
      (tmp_path / file).write_bytes(bad)
      with pytest.raises(words.Mistake, match=f'{file}.*damaged|damaged.*{file}'):
        store.load(tmp_path)
    (tmp_path / file).write_bytes(good)
  store.load(tmp_path)


def test_what_load_cannot_read_is_one_clear_line(tokenizers, tmp_path):
  def wrong(match):
    with pytest.raises(words.Mistake, match=match) as caught:
      store.load(tmp_path)
    assert '\n' not in str(caught.value)
    assert str(tmp_path) in str(caught.value)

  wrong('holds no meta.json')
  tokenizers['bpe'].save(tmp_path)
  (tmp_path / 'sentencepiece.model').unlink()
  wrong('lacks its file sentencepiece.model')
  meta = json.loads((tmp_path / 'meta.json').read_text())
  (tmp_path / 'meta.json').write_text(json.dumps({**meta, 'format': 99}))
  wrong('format 99')
  (tmp_path / 'meta.json').write_text(json.dumps(meta)[:40])
  wrong('damaged')
  (tmp_path / 'meta.json').write_text('{"format": 1}')
  wrong('damaged')


def test_a_changed_control_id_is_found(tokenizers, tmp_path):
  tokenizers['bytes'].save(tmp_path)
  path = tmp_path / 'meta.json'
  path.write_text(path.read_text().replace('"<|user|>": 259', '"<|user|>": 65'))
  with pytest.raises(words.Mistake, match='damaged'):
    store.load(tmp_path)


@pytest.mark.parametrize('name', ALL)
def test_pickles(tokenizers, name):
  tokenizer = tokenizers[name]
  again = pickle.loads(pickle.dumps(tokenizer))
  assert again.digest == tokenizer.digest
  np.testing.assert_array_equal(again.encode(PROSE), tokenizer.encode(PROSE))


def test_threads_get_the_same_ids(tokenizers, monkeypatch):
  monkeypatch.setattr(store.Words, 'COUNT', 10)  # Cleared all the time.
  tokenizer = pickle.loads(pickle.dumps(tokenizers['bpe']))
  truth = tokenizers['bpe'].encode(PROSE)
  results = []
  threads = [
    threading.Thread(
      target=lambda: results.extend(tokenizer.encode(PROSE) for _ in range(5))
    )
    for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(results) == 20
  assert all(np.array_equal(ids, truth) for ids in results)


@pytest.mark.parametrize('name', ['bpe', 'hf'])
def test_blocks_of_a_huge_text_change_nothing(tokenizers, name, monkeypatch):
  text = PROSE + 'x' * 700 + '  \n\n\n' * 30 + ''.join(STRINGS)
  truth = tokenizers[name].encode(text)
  for block in (1, 2, 7, 64, 1000):
    monkeypatch.setattr(store.Words, 'BLOCK', block)
    np.testing.assert_array_equal(tokenizers[name].encode(text), truth)


@pytest.mark.slow
def test_worker_processes_get_the_same_ids(tokenizers):
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    for name in ('bpe', 'hf'):
      ids = pool.apply(tokenizers[name].encode, (PROSE,))
      np.testing.assert_array_equal(ids, tokenizers[name].encode(PROSE))


def test_compression_is_bytes_over_tokens(tokenizers):
  assert store.compression(tokenizers['bytes'], ['é', 'abc', '']) == 1.0
  bpe = tokenizers['bpe']
  assert store.compression(bpe, [PROSE]) == len(PROSE.encode()) / len(bpe.encode(PROSE))
  assert 1.5 < store.compression(bpe, [PROSE]) < 4
  with pytest.raises(words.Mistake, match='empty'):
    store.compression(bpe, [''])


def test_a_remote_folder_needs_no_rename(tokenizers):
  fakefs.clear()
  for name in ('bytes', 'bpe'):
    tokenizers[name].save('fake://bucket/run/tokenizer')
    assert store.load('fake://bucket/run/tokenizer').digest == tokenizers[name].digest
