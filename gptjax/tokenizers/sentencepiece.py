"""Sentencepiece, trained on the run's own text: BPE or unigram with byte fallback.

Any string round-trips. Text is cut into words: a run of spaces, then all up to the next
space, with the newlines that end it (at most 64 spaces, 512 characters, 64 newlines).
Each word is encoded alone. No piece that sentencepiece learns has a space after another
character, so the spaces change nothing; the cut after newlines is made in training too.
Hence a word is encoded once and then looked up: several times as fast as
sentencepiece, and the time grows linearly with the length of a document.

Sentencepiece writes a space as U+2581 and would read a true U+2581 as a space: that
character goes around it, as the ids of its three bytes.

Sources: Kudo and Richardson 2018 (arXiv 1808.06226); BPE: Sennrich et al. 2016
(1508.07909); unigram: Kudo 2018 (1804.10959). Single digits as Llama 2 (2307.09288).
"""

import contextlib
import hashlib
import importlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from gptjax import lookup
from gptjax.tokenizers import store
from gptjax.words import Mistake, Tokenizer

FILE = 'sentencepiece.model'
MODELS = ('bpe', 'unigram')
# Scores of unigram pieces are multiples of 1/64, so that their sums are exact in any
# float and every program that adds them up comes to the same ids.
GRAIN = 64

_SPACE = '\u2581'
_BYTES, _LEAST = 256, 32
_MOST = 1_000_000  # Beyond all that is in use; training takes hours.
WORD = ' {0,64}[^ \n]{0,512}\n{0,64}'  # An expression.
# Sentencepiece passes over lines with NUL or U+2585; lines are cut at these.
_LINE = re.compile('[^\n\0\u2581\u2585]{0,4096}\n{0,64}')
_COVERAGE = 0.9995  # Of the characters of the text: pieces. The others: bytes.
_GOLDEN = 0.6180339887498949  # Its multiples modulo 1 lie evenly wherever they stop.


def sentencepiece(
  texts: Callable[[], Iterable[str]],
  vocab: int = 4096,
  model: str = 'bpe',
  controls: Sequence[str] = (),
  cache: Any = None,
  max_bytes: int = 20_000_000,
  say: Callable[[str], None] = lambda line: None,
) -> Tokenizer:
  """Trains on the texts, or finds what the same texts and arguments gave before.

  Args:
    texts: gives the training texts, the same each time: read once to look into the
      cache, once more to train.
    vocab: ids in all; 257 of them are bytes and sentencepiece's own, 10 are controls.
      Fewer where the texts have not as many pieces to give, with a line that says so.
    model: bpe or unigram.
    controls: names of further control tokens.
    cache: folder of trained tokenizers by content; None: gptjax/tokenizers in the
      user's cache folder ($XDG_CACHE_HOME or ~/.cache). That it cannot be written is
      no error.
    max_bytes: of text to train on; of longer texts, lines spread evenly over them.
    say: takes lines for the user.

  Raises:
    Mistake: an unknown model, a vocab too small for bytes and controls, empty
      texts.
  """
  if model not in MODELS:
    near = lookup.nearest(str(model), MODELS)
    raise Mistake(f'tokenizer sentencepiece: no model {model!r}: {near}')
  names = list(store.number(0, controls)['controls'])
  room = vocab - 1 - len(names) - _BYTES  # For pieces; 1 is sentencepiece's unknown.
  if room < _LEAST:
    raise Mistake(
      f'tokenizer sentencepiece: vocab={vocab} is too small: beside {_BYTES} bytes and '
      f'{len(names)} control tokens it needs {_LEAST} pieces, {vocab - room + _LEAST} '
      'in all.'
    )
  if vocab > _MOST:
    raise Mistake(f'tokenizer sentencepiece: vocab={vocab}: at most {_MOST:,}.')
  options = _options(vocab, model, names)
  grain = {'grain': GRAIN} if model == 'unigram' else {}
  size, key = _fingerprint(texts, dict(options, max_bytes=max_bytes, **grain))
  folder = (epath.Path(cache) if cache else _user_cache()) / key
  with contextlib.suppress(Mistake, OSError):  # Not there, or damaged: train.
    return store.load(folder)
  lines = list(_sample(texts, max_bytes / max(1, size)))
  if not lines:
    raise Mistake('tokenizer sentencepiece: the training text is empty.')
  lines = list(_without_rare(lines, room))
  say(f'Training a tokenizer of {vocab:,} ids on {min(size, max_bytes):,} bytes.')
  tokenizer = read({}, {FILE: _train(lines, options, say)})
  with contextlib.suppress(OSError):
    tokenizer.save(folder)
  return tokenizer


def read(meta: Mapping[str, Any], files: Mapping[str, bytes]) -> Tokenizer:
  """The tokenizer as it was saved: the model says it all."""
  import sentencepiece as spm

  model = spm.SentencePieceProcessor(model_proto=files[FILE])
  size = model.get_piece_size()
  space = [model.piece_to_id(f'<0x{byte:02X}>') for byte in _SPACE.encode()]

  def encode(word: str) -> list[int]:
    first, *parts = map(model.encode, word.split(_SPACE))
    return sum((space + part for part in parts), first)

  return store.Table(
    name='sentencepiece',
    start=model.bos_id(),
    end=model.eos_id(),
    controls={model.id_to_piece(i): i for i in range(size) if model.is_control(i)},
    files=files,
    pieces=[_piece(model, i) for i in range(size)],
    ids=store.Words(re.compile(WORD), encode).ids,
  )


def _piece(model: Any, index: int) -> bytes:
  if model.is_control(index) or model.is_unknown(index):
    return b''
  piece = model.id_to_piece(index)
  if model.is_byte(index):  # '<0x0A>'
    return bytes([int(piece[3:5], 16)])
  return piece.replace(_SPACE, ' ').encode()


def _options(vocab: int, model: str, names: Sequence[str]) -> dict[str, Any]:
  """Of sentencepiece's trainer: lossless, and the same model on every machine."""
  return dict(
    vocab_size=vocab,
    model_type=model,
    unk_id=0,
    bos_id=1,
    eos_id=2,
    pad_id=-1,
    bos_piece=store.START,
    eos_piece=store.END,
    # As user-defined symbols they would be found in text that imitates them.
    control_symbols=[n for n in names if n not in (store.START, store.END)],
    byte_fallback=True,
    character_coverage=1.0,  # The rare ones are taken out before.
    normalization_rule_name='identity',
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    split_digits=True,
    max_sentence_length=1 << 20,  # Bytes; longer lines would be left out.
    num_threads=4,  # Unigram's sums, and so its pieces, depend on it.
    minloglevel=2,
  )


def _fingerprint(texts: Callable, arguments: Mapping[str, Any]) -> tuple[int, str]:
  """Bytes of the texts, and sha256 of all that decides the model."""
  import sentencepiece as spm

  said = dict(arguments, format=store.FORMAT, sentencepiece=spm.__version__)
  digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
  size = 0
  for text in texts():
    data = store.plain(text).encode()
    digest.update(b'%d\n' % len(data))
    digest.update(data)
    size += len(data)
  return size, digest.hexdigest()


def _sample(texts: Callable, share: float) -> Iterator[str]:
  """The lines of the texts, with their newlines; of them a share, spread evenly."""
  count = 0
  for text in texts():
    for line in _LINE.findall(store.plain(text)):
      if line:
        count += 1
        if count * _GOLDEN % 1.0 < share:
          yield line


def _without_rare(lines: Sequence[str], room: int) -> Iterator[str]:
  """The lines, cut at the characters that shall be bytes.

  Those are the rarest: 0.05 % of the text, or more where the others would fill over
  half of the room for pieces, as Chinese would with a small vocabulary.
  """
  points = np.frombuffer(''.join(lines).encode('utf-32-le'), np.dtype('<u4'))
  counts = np.bincount(points, minlength=1)
  order = np.argsort(-counts, kind='stable')[: np.count_nonzero(counts)]
  before = np.cumsum(counts[order]) - counts[order]
  keep = min(np.count_nonzero(before < _COVERAGE * len(points)), max(1, room // 2))
  rare = dict.fromkeys(order[keep:].tolist(), '\0')
  for line in lines:
    yield from filter(None, line.translate(rare).split('\0') if rare else [line])


def _train(
  lines: Sequence[str], options: Mapping[str, Any], say: Callable[[str], None]
) -> bytes:
  import sentencepiece as spm

  model = io.BytesIO()
  try:
    spm.SentencePieceTrainer.train(
      sentence_iterator=iter(lines), model_writer=model, **options
    )
  except RuntimeError as error:
    most = re.search(r'set it to a value <= (\d+)', str(error))
    if not most or not 0 < int(most[1]) < options['vocab_size']:
      raise Mistake(f'tokenizer sentencepiece cannot be trained: {error}') from error
    say(
      f'The text has pieces for {int(most[1]):,} ids only, not for '
      f'{options["vocab_size"]:,}: the tokenizer has those.'
    )
    return _train(lines, dict(options, vocab_size=int(most[1])), say)
  return _rounded(model.getvalue())


def is_unigram(data: bytes) -> bool:
  """Whether a model is one of unigrams."""
  return _proto().FromString(data).trainer_spec.model_type == 1


def _rounded(data: bytes) -> bytes:
  """The model with scores that are multiples of 1 / GRAIN, if it is of unigrams."""
  if not is_unigram(data):
    return data
  model = _proto().FromString(data)
  for piece in model.pieces:
    piece.score = round(piece.score * GRAIN) / GRAIN
  return model.SerializeToString()


def _proto() -> Any:
  module: Any = importlib.import_module('sentencepiece.sentencepiece_model_pb2')
  return module.ModelProto


def _user_cache() -> epath.Path:
  home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return epath.Path(home) / 'gptjax' / 'tokenizers'
