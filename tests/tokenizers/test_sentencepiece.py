"""Training: the same everywhere, cached by content, clear about its limits."""

import inspect
import os
import subprocess
import sys
import time

import hypothesis
import numpy as np
import pytest
import sentencepiece as spm
from hypothesis import strategies as st

from gptjax import words
from gptjax.tokenizers import sentencepiece as module
from gptjax.tokenizers import store
from gptjax.tokenizers.sentencepiece import sentencepiece

TEXTS = [inspect.getsource(store), inspect.getsource(words), '你好 мир\n' * 20]


def texts():
  return iter(TEXTS)


@pytest.fixture(scope='module', params=['bpe', 'unigram'])
def tokenizer(request, tmp_path_factory):
  cache = tmp_path_factory.mktemp('cache')
  return sentencepiece(texts, 500, request.param, cache=cache)


@pytest.fixture
def training(monkeypatch):
  """Counts trainings."""
  calls = []
  train = module._train
  monkeypatch.setattr(module, '_train', lambda *a: calls.append(1) or train(*a))
  return calls


@pytest.mark.parametrize('model', ['bpe', 'unigram'])
def test_another_process_trains_the_same_bytes(model, tmp_path):
  here = sentencepiece(texts, 400, model, cache=tmp_path / 'a')
  again = sentencepiece(texts, 400, model, cache=tmp_path / 'b')
  assert again.files == here.files
  code = (
    'import inspect\n'
    'from gptjax import words\n'
    'from gptjax.tokenizers import store\n'
    'from gptjax.tokenizers.sentencepiece import sentencepiece\n'
    'texts = [inspect.getsource(store), inspect.getsource(words), "你好 мир\\n" * 20]\n'
    f'made = sentencepiece(lambda: texts, 400, {model!r}, cache={str(tmp_path)!r})\n'
    'print(made.digest)'
  )
  env = dict(os.environ, PYTHONHASHSEED='7', OMP_NUM_THREADS='1')
  ran = subprocess.run(
    [sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True
  )
  assert ran.stdout.strip() == here.digest
  assert ran.stderr == ''


def test_the_cache_goes_by_content(training, tmp_path):
  first = sentencepiece(texts, 400, cache=tmp_path)
  assert sentencepiece(texts, 400, cache=tmp_path).digest == first.digest
  assert len(training) == 1
  changed = [
    sentencepiece(lambda: [*TEXTS, 'x'], 400, cache=tmp_path),
    sentencepiece(lambda: [TEXTS[0] + TEXTS[1], TEXTS[2]], 400, cache=tmp_path),
    sentencepiece(texts, 401, cache=tmp_path),
    sentencepiece(texts, 400, 'unigram', cache=tmp_path),
    sentencepiece(texts, 400, controls=['<|code|>'], cache=tmp_path),
    sentencepiece(texts, 400, cache=tmp_path, max_bytes=9_000),
  ]
  assert len(training) == 1 + len(changed)
  assert len(list(tmp_path.iterdir())) == 1 + len(changed)
  assert changed[4].size == 400
  assert changed[4].controls['<|code|>'] == 11


@pytest.mark.parametrize('file', ['sentencepiece.model', 'meta.json'])
@pytest.mark.parametrize('damage', ['cut', 'flip', 'gone', 'empty'])
def test_a_damaged_cache_is_trained_anew(training, tmp_path, file, damage):
  first = sentencepiece(texts, 300, cache=tmp_path)
  (path,) = tmp_path.glob(f'*/{file}')
  good = path.read_bytes()
  bad = {'cut': good[: len(good) // 2], 'flip': good.replace(b'e', b'f'), 'empty': b''}
  path.unlink() if damage == 'gone' else path.write_bytes(bad[damage])
  assert sentencepiece(texts, 300, cache=tmp_path).digest == first.digest
  assert len(training) == 2
  assert path.read_bytes() == good
  assert sentencepiece(texts, 300, cache=tmp_path).digest == first.digest
  assert len(training) == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
  (tmp_path / 'file').write_text('in the way')
  assert sentencepiece(texts, 300, cache=tmp_path / 'file').size == 300


def test_the_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  sentencepiece(texts, 300)
  assert list((tmp_path / 'gptjax' / 'tokenizers').glob('*/meta.json'))


def test_words_are_what_sentencepiece_makes_of_the_whole_line(tokenizer, request):
  """The cut at spaces changes nothing: it is sentencepiece's own."""
  model = spm.SentencePieceProcessor(model_proto=tokenizer.files[module.FILE])
  is_bpe = request.node.callspec.params['tokenizer'] == 'bpe'

  @hypothesis.settings(max_examples=300, deadline=None, database=None)
  @hypothesis.given(
    st.lists(
      st.sampled_from([' ', '  ', 'the ', ' def', '\t', '你好', '(', 'мир', '_', '12'])
      | st.text(st.characters(exclude_categories=['Cs']), max_size=3)
    ).map(''.join)
  )
  def run(text):
    line = text.replace('\n', '').replace('\u2581', '')
    ours, theirs = tokenizer.encode(line).tolist(), model.encode(line)
    if is_bpe:
      assert ours == theirs
    else:  # Of two ways with one score, the longer sum may round to the other.
      scores = [sum(map(model.get_score, ids)) for ids in (ours, theirs)]
      assert scores[0] == pytest.approx(scores[1], abs=1e-3)

  run()


def test_lines_are_encoded_on_their_own(tokenizer):
  text = 'def f(x):\n  return x\n\n\nend\r\n- a\n' * 3
  lines = module._LINE.findall(text)
  assert ''.join(lines) == text
  apart = np.concatenate([tokenizer.encode(line) for line in lines])
  np.testing.assert_array_equal(tokenizer.encode(text), apart)


def test_time_grows_linearly_on_one_endless_word(tokenizer):
  def seconds(length):
    text = ''.join(np.random.default_rng(0).choice(list('abc你好'), length))
    started = time.process_time()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    return time.process_time() - started

  seconds(100)
  assert seconds(400_000) < 60 * seconds(20_000)


def test_control_tokens_in_the_training_text_stay_text(tmp_path):
  made = sentencepiece(
    lambda: ['<|user|>hi<|end|> <s>\n' * 500, *TEXTS], 400, cache=tmp_path
  )
  ids = made.encode('<|user|>hi<|end|>')
  assert not set(ids.tolist()) & set(made.controls.values())
  assert made.decode(ids) == '<|user|>hi<|end|>'


def test_a_script_with_more_characters_than_pieces(tmp_path):
  rng = np.random.default_rng(0)
  chars = [chr(0x4E00 + i) for i in range(3_000)]
  weights = 1 / np.arange(1, 3_001)
  text = ''.join(rng.choice(chars, 60_000, p=weights / weights.sum()))
  made = sentencepiece(lambda: [text], 600, cache=tmp_path)
  assert made.size == 600
  assert made.decode(made.encode(text)) == text
  # The commonest are pieces, and common pairs too; the rest are three bytes.
  assert len(made.encode(chars[0])) == 1
  assert len(made.encode(chars[-1])) == 3
  assert any(len(made.piece(i).decode('utf-8', 'ignore')) > 1 for i in range(300, 600))


def test_long_texts_are_sampled_evenly():
  many = [
    f'document {i:04d} line {j}\n' * (1 + i % 7) for i in range(500) for j in (1, 2)
  ]
  all_lines = list(module._sample(lambda: many, 1.0))
  assert all_lines == [
    line for text in many for line in module._LINE.findall(text) if line
  ]
  some = list(module._sample(lambda: many, 0.25))
  assert len(some) == pytest.approx(0.25 * len(all_lines), rel=0.01)
  for quarter in range(4):
    numbers = range(125 * quarter, 125 * (quarter + 1))
    count = sum(int(line.split()[1]) in numbers for line in some)
    assert count == pytest.approx(len(some) / 4, rel=0.05)


def test_one_long_line_is_sampled_too(tmp_path):
  text = ' '.join(f'word{i % 97} and more' for i in range(20_000))
  made = sentencepiece(lambda: [text], 300, cache=tmp_path, max_bytes=50_000)
  assert store.compression(made, [text]) > 1.5


@pytest.mark.parametrize('model', ['bpe', 'unigram'])
def test_a_text_with_few_pieces_gives_a_smaller_vocabulary(tmp_path, model):
  said = []
  few = sentencepiece(
    lambda: ['hello there'] * 10, model=model, cache=tmp_path, say=said.append
  )
  assert 267 < few.size < 300
  assert few.decode(few.encode('hello, bots')) == 'hello, bots'
  assert f'{few.size} ids only, not for 4,096' in said[-1]


def test_mistakes_are_one_clear_line(tmp_path):
  def wrong(match, *args, **kwargs):
    with pytest.raises(words.Mistake, match=match) as caught:
      sentencepiece(*args, **kwargs, cache=tmp_path)
    assert '\n' not in str(caught.value)

  wrong(r'vocab=200 is too small.* 299 in all', texts, vocab=200)
  wrong('empty', lambda: [])
  wrong('empty', lambda: ['', ''])
  wrong("did you mean 'unigram'", texts, model='unigrams')
  wrong('control token', texts, controls=['<|user|>'])
  wrong('empty', lambda: ['\0\u2581\u2585'])
  assert not list(tmp_path.iterdir())


def test_golden_pieces(tmp_path):
  text = ''.join(f'{i} sheep, {i * i} legs\n' for i in range(400))
  made = sentencepiece(lambda: [text], 300, cache=tmp_path)
  pieces = [made.piece(i) for i in made.encode('12 sheep,\n\u2581')]
  space = [b'\xe2', b'\x96', b'\x81']
  assert pieces == [b'1', b'2', b' sheep', b',', b'\n', *space]
