"""The tokenizer in a GGUF file: its metadata and a tokenizer.json, both ways.

Files of ours hold the tokenizer.json as it was. Else there are pieces with their types,
and merges (byte-level BPE, `gpt2`) or scores (sentencepiece, `llama`). How byte-level
BPE cuts the text is said by a name; those known here are in PRE.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from gptjax.interop import bpe, tokenizer_json
from gptjax.lookup import nearest
from gptjax.tokenizers import hf, pipeline
from gptjax.words import Mistake, Tokenizer

HF_JSON = 'tokenizer.huggingface.json'
TEMPLATE = 'tokenizer.chat_template'
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
BYTES = re.compile('<0x[0-9A-F]{2}>')

_LEVEL = dict(type='ByteLevel', add_prefix_space=False, trim_offsets=True)
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
# How the text is cut before byte-level BPE: pre_tokenizer, and whether words that are
# pieces are taken whole.
PRE: dict[str, tuple[dict[str, Any], bool]] = {
  'gpt-2': (dict(_LEVEL, use_regex=True), False),
  'smollm': (
    dict(
      type='Sequence',
      pretokenizers=[
        dict(type='Digits', individual_digits=True),
        dict(_LEVEL, use_regex=True),
      ],
    ),
    False,
  ),
  'llama-bpe': (
    dict(
      type='Sequence',
      pretokenizers=[
        dict(
          type='Split', pattern=dict(Regex=_LLAMA3), behavior='Isolated', invert=False
        ),
        dict(_LEVEL, use_regex=False),
      ],
    ),
    True,
  ),
}


def read(metadata: Mapping[str, Any], where: Any) -> Tokenizer:
  """The tokenizer of a file's metadata; `where` names the file.

  Raises:
    Mistake: it has none, or one of a kind that is not known here.
  """
  pieces = metadata.get('tokenizer.ggml.tokens')
  if not isinstance(pieces, list) or not pieces:
    raise Mistake(f'{where} holds no tokenizer (tokenizer.ggml.tokens).')
  try:
    return _read(metadata, pieces, where)
  except (ValueError, TypeError, AttributeError, IndexError) as error:
    raise Mistake(f'{where}: its tokenizer is damaged: {error}.') from error


def _read(metadata: Mapping[str, Any], pieces: list[str], where: Any) -> Tokenizer:
  types = [int(t) for t in metadata.get('tokenizer.ggml.token_type', ())]
  types = types or len(pieces) * [NORMAL]
  if len(types) != len(pieces):
    raise ValueError(f'{len(types)} token types for {len(pieces)} tokens')
  named = special(metadata)
  edges = named['bos_token'], named['eos_token']
  for name in filter(None, edges):
    types[pieces.index(name)] = CONTROL
  if HF_JSON in metadata:
    spec = json.loads(metadata[HF_JSON])
  else:
    spec = _spec(metadata, pieces, types, where)
  return with_edges(spec, where, *edges)


def with_edges(
  spec: dict[str, Any], where: Any, start: str | None, end: str | None
) -> Tokenizer:
  """The tokenizer of a spec: by the usual names of start and end, else by these.

  What a chat model calls its end is often that of a turn, not of a document.
  """
  special = {t['content'] for t in spec.get('added_tokens') or () if t.get('special')}
  return hf.from_spec(
    spec,
    where,
    start=None if special & {*hf.STARTS} else start,
    end=None if special & {*hf.ENDS} else end,
  )


def special(metadata: Mapping[str, Any]) -> dict[str, str | None]:
  """bos_token, eos_token and pad_token, as far as they are said."""
  pieces, found = metadata['tokenizer.ggml.tokens'], {}
  for key, short in (('bos', 'bos'), ('eos', 'eos'), ('pad', 'padding')):
    index = metadata.get(f'tokenizer.ggml.{short}_token_id')
    if index is not None and not 0 <= index < len(pieces):
      raise ValueError(f'{short}_token_id={index} of {len(pieces)} tokens')
    found[f'{key}_token'] = None if index is None else pieces[index]
  return found


def _spec(
  metadata: Mapping[str, Any], pieces: list[str], types: list[int], where: Any
) -> dict[str, Any]:
  kind = metadata.get('tokenizer.ggml.model')
  makers = {'gpt2': _byte_level, 'llama': _sentencepiece}
  if kind not in makers:
    near = nearest(str(kind), makers)
    raise Mistake(f'{where}: tokenizer.ggml.model={kind!r}: {near}')
  flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
  added = [
    dict(id=index, content=piece, **flags, special=types[index] == CONTROL)
    for index, piece in enumerate(pieces)
    if types[index] in (CONTROL, USER)
  ]
  whole = dict(version='1.0', truncation=None, padding=None, added_tokens=added)
  parts = makers[kind](metadata, pieces, types, where)
  return {**whole, 'post_processor': None, **parts}


def _byte_level(
  metadata: Mapping[str, Any], pieces: list[str], types: list[int], where: Any
) -> dict[str, Any]:
  del types
  pre = metadata.get('tokenizer.ggml.pre', 'default')
  if pre not in PRE:
    near = nearest(str(pre), PRE)
    raise Mistake(f'{where}: tokenizer.ggml.pre={pre!r}, how text is cut: {near}')
  cut, whole = PRE[pre]
  model = dict(
    type='BPE',
    vocab={piece: index for index, piece in enumerate(pieces)},
    merges=[merge.split(' ') for merge in metadata.get('tokenizer.ggml.merges', ())],
    ignore_merges=whole,
  )
  level = dict(_LEVEL, use_regex=True)
  return dict(normalizer=None, pre_tokenizer=cut, decoder=level, model=model)


def _sentencepiece(
  metadata: Mapping[str, Any], pieces: list[str], types: list[int], where: Any
) -> dict[str, Any]:
  """With spaces as they are: a true U+2581 then goes to its bytes, not to a space."""
  del where
  scores = metadata.get('tokenizer.ggml.scores', ())
  if len(scores) != len(pieces):
    raise ValueError(f'{len(scores)} scores for {len(pieces)} tokens')
  written = [
    piece.replace('\u2581', ' ') if kind in (NORMAL, UNUSED) else piece
    for piece, kind in zip(pieces, types, strict=True)
  ]
  joined = {
    piece: float(score)
    for piece, kind, score in zip(written, types, scores, strict=True)
    if kind in (NORMAL, USER)
  }
  model = dict(
    type='BPE',
    vocab={piece: index for index, piece in enumerate(written)},
    merges=[list(pair) for pair in bpe.merges(joined)],
    byte_fallback=True,
  )
  lead = metadata.get('tokenizer.ggml.add_space_prefix', True)
  decoders = [dict(type='ByteFallback'), dict(type='Fuse')]
  return dict(
    normalizer=dict(type='Prepend', prepend=' ') if lead else None,
    pre_tokenizer=None,
    decoder=dict(type='Sequence', decoders=decoders),
    model=model,
  )


def write(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
  """The metadata of a tokenizer for a table of so many rows; bos, eos are not in it.

  Raises:
    Mistake: one that GGUF has no words for, with the reason.
  """
  spec = tokenizer_json.spec_of(tokenizer)
  makers = {'bytes': _write_bytes, 'chars': _write_bytes, 'hf': _write_hf}
  found = makers.get(tokenizer.name, _write_pieces)(tokenizer, spec)
  pieces, types = found.pop('tokens'), found.pop('token_type')
  scores = found.pop('scores', None)
  if len(pieces) > rows:
    raise Mistake(f'the tokenizer has {len(pieces)} ids, the model {rows} rows.')
  for index in tokenizer.controls.values():
    types[index] = CONTROL
  names = {index: name for name, index in tokenizer.controls.items()}
  pieces = [names.get(i, piece) for i, piece in enumerate(pieces)]
  empty = range(len(pieces), rows)
  found['tokens'] = pieces + [f'[PAD{i}]' for i in empty]
  found['token_type'] = types + len(empty) * [UNUSED]
  if scores is not None:
    found['scores'] = [float(score) for score in scores] + len(empty) * [0.0]
  post = json.dumps(spec.get('post_processor'))
  first = json.dumps({'SpecialToken': {'id': names[tokenizer.start]}})[:-2]
  found['add_bos_token'] = first in post
  found['add_eos_token'] = False
  text = json.dumps(spec, ensure_ascii=False, separators=(',', ':'))
  return {**{f'tokenizer.ggml.{k}': v for k, v in found.items()}, HF_JSON: text}


def _write_bytes(tokenizer: Tokenizer, spec: Mapping[str, Any]) -> dict[str, Any]:
  """Of one byte each: byte-level BPE without merges."""
  del spec
  own = [tokenizer.piece(index) for index in range(tokenizer.size)]
  if long := next((piece for piece in own if len(piece) > 1), None):
    raise Mistake(
      f'GGUF has no tokenizer of characters such as {long.decode()!r}; of ASCII alone, '
      'or bytes or sentencepiece, it can hold.'
    )
  pieces = [pipeline.characters(piece) for piece in own]
  types = len(pieces) * [NORMAL]
  return dict(model='gpt2', pre='gpt-2', tokens=pieces, token_type=types, merges=[])


def _write_pieces(tokenizer: Tokenizer, spec: Mapping[str, Any]) -> dict[str, Any]:
  del spec
  found = tokenizer_json.Pieces(tokenizer)
  if found.unigram:
    raise Mistake(
      'GGUF has no unigram tokenizer that falls back to bytes; train one with '
      "c.tokenizer=dict(name='sentencepiece', model='bpe'), or take --target=hf:DIR."
    )
  types = [
    BYTE if byte else NORMAL if normal else UNKNOWN
    for byte, normal in zip(found.byte, found.normal, strict=True)
  ]
  told = dict(model='llama', pre='default', add_space_prefix=False)
  return dict(told, tokens=found.names, scores=found.scores, token_type=types)


def _write_hf(tokenizer: Tokenizer, spec: Mapping[str, Any]) -> dict[str, Any]:
  model = spec['model']
  vocab = pipeline.ids_by_name(spec)
  pieces = [f'[PAD{i}]' for i in range(tokenizer.size)]
  types = len(pieces) * [UNUSED]
  for name, index in vocab.items():
    pieces[index], types[index] = name, NORMAL
  for token in spec['added_tokens']:
    types[token['id']] = CONTROL if token['special'] else USER
  if model['type'] == 'BPE' and pipeline.is_byte_level(spec):
    return _write_byte_level(spec, pieces, types)
  if model['type'] == 'BPE' and model.get('byte_fallback'):
    return _write_fallback(spec, pieces, types)
  raise Mistake(
    f'GGUF has no tokenizer as this one ({model["type"]}, neither byte-level nor with '
    'bytes to fall back to); take --target=hf:DIR.'
  )


def _write_byte_level(
  spec: Mapping[str, Any], pieces: list[str], types: list[int]
) -> dict[str, Any]:
  model, cut = spec['model'], _plain(spec['pre_tokenizer'])
  whole = bool(model.get('ignore_merges'))
  known = [n for n, (own, w) in PRE.items() if (_plain(own), w) == (cut, whole)]
  if not known or spec.get('normalizer'):
    raise Mistake(
      'GGUF says by a name how text is cut into words, and has none that is known here '
      f'for this tokenizer; known: {", ".join(PRE)}. --target=hf:DIR keeps it.'
    )
  merges = [m if isinstance(m, str) else ' '.join(m) for m in model['merges']]
  told = dict(model='gpt2', pre=known[0], tokens=pieces, token_type=types)
  return dict(told, merges=merges)


def _plain(part: Any) -> Any:
  """A part of a tokenizer.json without what changes no ids."""
  if isinstance(part, Mapping):
    one = part.get('type') == 'Sequence' and len(part.get('pretokenizers', ())) == 1
    if one:
      return _plain(part['pretokenizers'][0])
    return {k: _plain(v) for k, v in part.items() if k != 'trim_offsets'}
  return [_plain(p) for p in part] if isinstance(part, list) else part


def _write_fallback(
  spec: Mapping[str, Any], pieces: list[str], types: list[int]
) -> dict[str, Any]:
  """Pairs that merge as pieces with scores: possible where each piece has its place."""
  ranks: dict[str, int] = {}
  last = ''
  for pair in spec['model']['merges']:
    left, right = pair.split(' ') if isinstance(pair, str) else pair
    if last != (last := left + right):
      if last in ranks:
        raise Mistake(
          f'GGUF gives a piece one score, but {last!r} is merged at several places of '
          'the order; take --target=hf:DIR.'
        )
      ranks[last] = len(ranks)
  lead = {'type': 'Prepend', 'prepend': ' '}
  cuts = (None, tokenizer_json.WORDS)
  if spec.get('normalizer') not in (None, lead) or spec['pre_tokenizer'] not in cuts:
    raise Mistake(
      'GGUF has no tokenizer that changes or cuts text as this one; --target=hf:DIR.'
    )
  for index, name in enumerate(pieces):
    if types[index] == NORMAL and BYTES.fullmatch(name):
      types[index] = BYTE
  shown = [
    p.replace(' ', '\u2581') if t == NORMAL else p
    for p, t in zip(pieces, types, strict=True)
  ]
  scores = [
    -float(ranks.get(p, 0 if t == BYTE else len(ranks)))
    for p, t in zip(pieces, types, strict=True)
  ]
  told = dict(model='llama', pre='default', add_space_prefix=bool(spec['normalizer']))
  return dict(told, tokens=shown, scores=scores, token_type=types)
