"""The tokenizer in a GGUF file: from its metadata to a tokenizer.json.

Files of ours hold the tokenizer.json as it was. Else there are pieces with their types,
and merges (byte-level BPE, `gpt2`) or scores (sentencepiece, `llama`). How byte-level
BPE cuts the text is said by a name; those known here are in PRE.
"""

import json
from collections.abc import Mapping
from typing import Any

from gptjax.interop import bpe
from gptjax.lookup import nearest
from gptjax.tokenizers import hf
from gptjax.words import Mistake, Tokenizer

HF_JSON = 'tokenizer.huggingface.json'
TEMPLATE = 'tokenizer.chat_template'
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)

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
  types = [int(t) for t in metadata.get('tokenizer.ggml.token_type', ())]
  types = types or len(pieces) * [NORMAL]
  if len(types) != len(pieces):
    raise Mistake(f'{where}: {len(types)} token types for {len(pieces)} tokens.')
  edges = [_piece(metadata, pieces, f'{key}_token_id', where) for key in ('bos', 'eos')]
  for name in filter(None, edges):
    types[pieces.index(name)] = CONTROL
  if HF_JSON in metadata:
    try:
      spec = json.loads(metadata[HF_JSON])
    except (ValueError, TypeError) as error:
      raise Mistake(f'{where}: {HF_JSON} is no JSON: {error}.') from None
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


def _piece(
  metadata: Mapping[str, Any], pieces: list[str], key: str, where: Any
) -> str | None:
  index = metadata.get(f'tokenizer.ggml.{key}')
  if index is None:
    return None
  if not isinstance(index, int) or not 0 <= index < len(pieces):
    raise Mistake(f'{where}: tokenizer.ggml.{key}={index} of {len(pieces)} tokens.')
  return pieces[index]


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
  scores = metadata.get('tokenizer.ggml.scores', ())
  if len(scores) != len(pieces):
    raise Mistake(f'{where}: {len(scores)} scores for {len(pieces)} tokens.')
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
