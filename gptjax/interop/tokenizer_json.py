"""Our tokenizers as a tokenizer.json, which other tools run to the same ids.

Sentencepiece's pieces are written with spaces as they are: no normalizer is needed, and
a true U+2581 goes to its three bytes, as here. Control tokens are added tokens, in the
model too, where no text leads to them. How the text is cut into words is the expression
of tokenizers/sentencepiece.py.

Unigram asks for more. Its model looks whole names up, those of bytes and controls too:
these get a score that loses against any other way to write them, and characters without
a piece of their own, which have none, are cut out before. Ours adds in float32, others
in float64: scores that are multiples of 1/64 give both the same sums.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gptjax.interop import bpe
from gptjax.tokenizers import hf, sentencepiece
from gptjax.words import Mistake, Tokenizer

FILE, SETTINGS = 'tokenizer.json', 'tokenizer_config.json'
_SPACE = '\u2581'
_NEVER = -1e9  # A score that loses against a text's worth of others.


def spec_of(tokenizer: Tokenizer) -> dict[str, Any]:
  """The tokenizer.json of a tokenizer.

  Raises:
    Mistake: one whose ids no tokenizer.json would give, with the reason.
  """
  makers = {'bytes': _bytes, 'chars': _chars, 'sentencepiece': _pieces}
  if tokenizer.name == 'hf':
    return json.loads(tokenizer.files[hf.FILE])
  if tokenizer.name not in makers:
    raise Mistake(f'a tokenizer of kind {tokenizer.name} cannot be written for others.')
  made = makers[tokenizer.name](tokenizer)
  names = {index: name for name, index in tokenizer.controls.items()}
  flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
  added = [
    dict(id=index, content=names[index], **flags, special=True)
    for index in sorted(names)
  ]
  first = names[tokenizer.start]
  begin = {'SpecialToken': {'id': first, 'type_id': 0}}
  text = [{'Sequence': {'id': side, 'type_id': n}} for n, side in enumerate('AB')]
  ids = dict(id=first, ids=[tokenizer.start], tokens=[first])
  post = dict(
    type='TemplateProcessing',
    single=[begin, text[0]],
    pair=[begin, *text],
    special_tokens={first: ids},
  )
  head = dict(version='1.0', truncation=None, padding=None, added_tokens=added)
  decoders = [dict(type='ByteFallback'), dict(type='Fuse')]
  tail = dict(post_processor=post, decoder=dict(type='Sequence', decoders=decoders))
  return {**head, 'normalizer': None, **made, **tail}


def _model(kind: str, vocab: Any, **others: Any) -> dict[str, Any]:
  return {'type': kind, 'vocab': vocab, **others}


def _pairs(vocab: Mapping[str, int], merges: Sequence[Any], fallback: bool) -> Any:
  return _model(
    'BPE',
    dict(vocab),
    merges=[list(pair) for pair in merges],
    dropout=None,
    unk_token=None,
    continuing_subword_prefix=None,
    end_of_word_suffix=None,
    fuse_unk=False,
    byte_fallback=fallback,
    ignore_merges=False,
  )


def _split(pattern: str) -> dict[str, Any]:
  return dict(
    type='Split', pattern={'Regex': pattern}, behavior='Isolated', invert=False
  )


WORDS = _split(sentencepiece.WORD)  # How ours cuts text.


def _bytes(tokenizer: Tokenizer) -> dict[str, Any]:
  vocab = {f'<0x{byte:02X}>': byte for byte in range(256)} | dict(tokenizer.controls)
  return dict(pre_tokenizer=None, model=_pairs(vocab, [], True))


def _chars(tokenizer: Tokenizer) -> dict[str, Any]:
  """Other tools pass over characters without an id, which are refused here."""
  known = len(tokenizer.controls)
  vocab = {tokenizer.piece(i).decode(): i for i in range(tokenizer.size - known)}
  model = _pairs(vocab | dict(tokenizer.controls), [], False)
  return dict(pre_tokenizer=None, model=model)


class Pieces:
  """What a sentencepiece model holds, by id."""

  def __init__(self, tokenizer: Tokenizer):
    import sentencepiece as spm

    data = tokenizer.files[sentencepiece.FILE]
    model = spm.SentencePieceProcessor(model_proto=data)
    ids = range(model.get_piece_size())
    self.unigram = sentencepiece.is_unigram(data)
    self.names = [model.id_to_piece(i) for i in ids]
    self.scores = [model.get_score(i) for i in ids]
    self.normal = [
      not (model.is_byte(i) or model.is_control(i) or model.is_unknown(i)) for i in ids
    ]
    self.byte = [model.is_byte(i) for i in ids]
    self.control = [model.is_control(i) for i in ids]

  @property
  def spaced(self) -> list[str]:
    """The names with spaces as they are."""
    return [
      name.replace(_SPACE, ' ') if normal else name
      for name, normal in zip(self.names, self.normal, strict=True)
    ]


def _pieces(tokenizer: Tokenizer) -> dict[str, Any]:
  found = Pieces(tokenizer)
  names, others, scores = found.spaced, set(), {}
  for name, score, normal in zip(names, found.scores, found.normal, strict=True):
    if normal:
      scores[name] = score
    else:
      others.update(name)
  words = WORDS
  if not found.unigram:
    vocab = {name: index for index, name in enumerate(names)}
    return dict(pre_tokenizer=words, model=_pairs(vocab, bpe.merges(scores), True))
  if any(score * sentencepiece.GRAIN % 1 for score in scores.values()):
    raise Mistake(
      'this unigram tokenizer has scores that are no multiples of 1/64, as those have '
      'that are trained now: other tools would add them up to other ids now and then.'
    )
  table = [[name, scores.get(name, _NEVER)] for name in names]
  if absent := sorted(others - scores.keys()):
    alone = _split('[' + ''.join(f'\\x{ord(c):02X}' for c in absent) + ']')
    words = dict(type='Sequence', pretokenizers=[words, alone])
  return dict(
    pre_tokenizer=words, model=_model('Unigram', table, unk_id=0, byte_fallback=True)
  )
