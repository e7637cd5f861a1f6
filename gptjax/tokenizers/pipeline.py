"""What a tokenizer.json says: names, bytes and the parts of its pipeline.

`spec` is the file as read: model (vocabulary, merges), added_tokens, normalizer,
pre_tokenizer, post_processor and decoder, each with its type.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_SPACE = '\u2581'
LOST = '\ufffd'
HIDDEN = '\U0010ffff'  # A noncharacter: begins the names of what text may not reach.


def ids_by_name(spec: Mapping[str, Any]) -> dict[str, int]:
  """Of the model's vocabulary and the added tokens."""
  vocab = spec['model']['vocab']
  if not isinstance(vocab, dict):  # Unigram: pairs of piece and score.
    vocab = {piece: i for i, (piece, _) in enumerate(vocab)}
  return vocab | {t['content']: t['id'] for t in spec['added_tokens']}


def _kinds(part: Any) -> Iterator[Mapping[str, Any]]:
  """All parts that say their type, within sequences too."""
  if isinstance(part, Mapping):
    if 'type' in part:
      yield part
    for inner in part.values():
      yield from _kinds(inner)
  elif isinstance(part, list):
    for inner in part:
      yield from _kinds(inner)


def is_byte_level(spec: Mapping[str, Any]) -> bool:
  """Whether the model sees bytes, each written as a printable character."""
  parts = _kinds([spec.get('normalizer'), spec.get('pre_tokenizer')])
  return any(part['type'] == 'ByteLevel' for part in parts)


def _is_of_words(spec: Mapping[str, Any]) -> bool:
  return spec['model']['type'] in ('WordPiece', 'WordLevel')


def unknown_token(spec: Mapping[str, Any]) -> str | None:
  """The token of what the vocabulary lacks, if text can lead to it."""
  model = spec['model']
  if model['type'] == 'Unigram':
    index = model.get('unk_id')
    name = None if index is None else model['vocab'][index][0]
  else:
    name = model.get('unk_token')
  if model.get('byte_fallback'):
    return None
  if is_byte_level(spec) and set(_alphabet()) <= set(ids_by_name(spec)):
    return None
  return name


def hidden_name(index: int) -> str:
  """What stands for a control token in the spec that runs; text cannot say it."""
  return f'{HIDDEN}{index}{HIDDEN}'


def without(
  spec: Mapping[str, Any], controls: Mapping[str, int], heard: bool = False
) -> dict[str, Any]:
  """The spec that runs: no text gives a control token, nothing is cut or filled up.

  heard: whether hidden names in the text are control tokens.
  """
  unknown = unknown_token(spec)
  known = ids_by_name(spec)
  hidden = dict(controls)
  if unknown is not None:
    hidden[unknown] = known[unknown]
  names = {name: hidden_name(index) for name, index in hidden.items()}
  added = [t for t in spec['added_tokens'] if t['content'] not in names]
  if heard:
    there = (t for t in spec['added_tokens'] if t['content'] in controls)
    added += [dict(t, content=names[t['content']]) for t in there]
  # In the model's vocabulary too, or `tokenizers` would number them anew.
  vocab = {names.get(name, name): index for name, index in known.items()}
  model: dict[str, Any] = dict(spec['model'], dropout=None)
  if model['type'] == 'Unigram':
    scores = [score for _, score in model['vocab']]
    scores += (max(vocab.values()) + 1 - len(scores)) * [min(scores)]
    by_id = {index: name for name, index in vocab.items()}
    vocab = [[by_id.get(i, f'{HIDDEN}{i}'), s] for i, s in enumerate(scores)]
  elif 'unk_token' in model:
    model['unk_token'] = None if unknown is None else names[unknown]
  if 'merges' in model:
    pairs = [m.split(' ') if isinstance(m, str) else m for m in model['merges']]
    model['merges'] = [p for p in pairs if not names.keys() & {*p, ''.join(p)}]
  model['vocab'] = vocab
  none = dict(truncation=None, padding=None, post_processor=None)
  return dict(spec, **none, added_tokens=added, model=model)


def splits_at_space(spec: Mapping[str, Any], controls: Mapping[str, int]) -> bool:
  """Whether no token of a text depends on what is across a boundary `\\S|\\s`.

  So it is for GPT-2's expression, with digits set apart or not: white space opens its
  tokens and never ends them.
  """
  apart = {'Sequence', 'ByteLevel', 'Digits'}
  parts = list(_kinds(spec.get('pre_tokenizer')))
  levels = [part for part in parts if part['type'] == 'ByteLevel']
  return (
    spec.get('normalizer') is None
    and all(part['type'] in apart for part in parts)
    and any(part.get('use_regex', True) for part in levels)
    and not any(part.get('add_prefix_space') for part in levels)
    and all(t['content'] in controls for t in spec['added_tokens'])
    and spec['model']['type'] == 'BPE'
    and unknown_token(spec) is None
  )


def leading(spec: Mapping[str, Any]) -> bytes:
  """A space, if encoding puts one before every text."""
  for part in _kinds([spec.get('normalizer'), spec.get('pre_tokenizer')]):
    kind, scheme = part['type'], part.get('prepend_scheme', 'always')
    if kind == 'Prepend' or (kind == 'ByteLevel' and part.get('add_prefix_space')):
      return b' '
    if kind == 'Metaspace' and part.get('add_prefix_space', scheme != 'never'):
      return b' '
  return b' ' if _is_of_words(spec) else b''


def pieces(spec: Mapping[str, Any], controls: Mapping[str, int]) -> list[bytes]:
  """The bytes of every id; b'' for controls and for ids without a token."""
  known = ids_by_name(spec)
  table = (max(known.values()) + 1) * [b'']
  to_bytes = _reader(spec)
  added = {t['content'] for t in spec['added_tokens']} if is_byte_level(spec) else ()
  unknown = unknown_token(spec)
  for name, index in known.items():
    if name == unknown:
      table[index] = LOST.encode()
    elif name not in controls:
      table[index] = name.encode() if name in added else to_bytes(name)
  return table


def _reader(spec: Mapping[str, Any]) -> Callable[[str], bytes]:
  """How the model writes pieces: bytes as characters, U+2581 for a space, ##ing ..."""
  model = spec['model']
  if is_byte_level(spec):
    alphabet = _alphabet()
    return lambda name: b''.join(
      bytes([alphabet[c]]) if c in alphabet else c.encode() for c in name
    )
  parts = [spec.get('normalizer'), spec.get('pre_tokenizer'), spec.get('decoder')]
  spaced = _SPACE in json.dumps(parts, ensure_ascii=False)
  inside = model.get('continuing_subword_prefix') or ''
  suffix = model.get('end_of_word_suffix') or ''
  numbers = {f'<0x{b:02X}>': bytes([b]) for b in range(256)}
  fallback = numbers if model.get('byte_fallback') else {}
  words = _is_of_words(spec)

  def to_bytes(name: str) -> bytes:
    if name in fallback:
      return fallback[name]
    text = name.replace(_SPACE, ' ') if spaced else name
    if words:
      goes_on = bool(inside) and text.startswith(inside)
      text = text.removeprefix(inside) if goes_on else f' {text}'
    if suffix and text.endswith(suffix):
      text = text.removesuffix(suffix) + ' '
    return text.encode()

  return to_bytes


def characters(data: bytes) -> str:
  """Bytes as the printable characters of byte-level BPE."""
  names = {byte: char for char, byte in _alphabet().items()}
  return ''.join(names[byte] for byte in data)


def _alphabet() -> dict[str, int]:
  """GPT-2's printable character for each byte, the other way round."""
  own = [*range(ord('!'), ord('~') + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  rest = [byte for byte in range(256) if byte not in own]
  return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(rest)}
