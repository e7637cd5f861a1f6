"""Tokenizers of others: any tokenizer.json, or GPT-2's vocabulary with its merges.

The package `tokenizers` runs them, so that ids are those of the reference. It looks for
added tokens in the text, though, and some models would find them by themselves. So the
control tokens (all that the file calls special) are taken out of what runs: removed
from the added tokens, and renamed in the model to strings that no text can reach. Text
that imitates them stays text.

What a file throws away (case, Unicode forms, unknown characters, a true U+2581), no
decoder brings back; byte-level BPE without a normalizer, as GPT-2's, gives every string
back. Text of GPT-2's kind is cut at white space and each word encoded once.

Sources: Radford et al. 2019 (GPT-2: bytes as characters, the merges' order); the format
of tokenizer.json as huggingface/tokenizers reads it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from gptjax import lookup
from gptjax.tokenizers import pipeline, store
from gptjax.words import Mistake, Tokenizer

FILE = 'tokenizer.json'
PAIRS = (('vocab.json', 'merges.txt'), ('encoder.json', 'vocab.bpe'))
# Who begins and who ends a document, the surest names first.
STARTS = (
  '<|begin_of_text|>',
  '<|startoftext|>',
  '<s>',
  '<bos>',
  store.START,
  '<\uff5cbegin\u2581of\u2581sentence\uff5c>',
  '[CLS]',
  '<|endoftext|>',
  '<|im_start|>',
)
ENDS = (
  '<|endoftext|>',
  '<|end_of_text|>',
  '</s>',
  '<eos>',
  store.END,
  '<\uff5cend\u2581of\u2581sentence\uff5c>',
  '[SEP]',
  '<|im_end|>',
)

# White space as Unicode has it (Python's \s has four more), then what is none.
_SPACES = ' \t-\r\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000'
_WORD = re.compile(f'[{_SPACES}]*[^{_SPACES}]+|[{_SPACES}]+')


def hf(
  file: Any,
  start: str | None = None,
  end: str | None = None,
  controls: Sequence[str] = (),
) -> Tokenizer:
  """Reads a tokenizer.json, or a folder with one or with GPT-2's pair of files.

  Args:
    file: tokenizer.json (by any name), or a folder with tokenizer.json, vocab.json and
      merges.txt, or encoder.json and vocab.bpe.
    start: name of the token before a document; None: by the usual names.
    end: name of the token after a document; None: by the usual names. Where only one
      of them is found, it serves for both.
    controls: further tokens that text may not reach. Those that the file lacks get ids
      after its last one.

  Raises:
    Mistake: no such file, one that is damaged, or no token to start or end with.
  """
  path = epath.Path(file).expanduser()
  return from_spec(read_spec(path), path, start, end, controls)


def from_spec(
  spec: dict[str, Any],
  path: Any,
  start: str | None = None,
  end: str | None = None,
  controls: Sequence[str] = (),
) -> Tokenizer:
  """The tokenizer that a tokenizer.json describes; `path` is where it is from.

  Args and Raises: as of `hf`.
  """
  try:
    spec = _whole(spec)
  except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
    raise Mistake(f'{path} is damaged or no tokenizer: {error!r}') from error
  known = pipeline.ids_by_name(spec)
  special = {t['content']: t['id'] for t in spec['added_tokens'] if t['special']}
  special.pop(pipeline.unknown_token(spec), None)
  for name in controls:
    if name not in known:
      known[name] = max(known.values()) + 1
      spec['added_tokens'].append(_added(name, known[name]))
    special[name] = known[name]
  first = _edge(path, 'start', start, known, special, STARTS)
  last = _edge(path, 'end', end, known, special, ENDS)
  first, last = first or last, last or first
  if first is None or last is None:
    some = ', '.join(list(special)[:20]) or 'none'
    raise Mistake(
      f'{path}: no token there bears a usual name for start or end of a document; say '
      f'start= and end=. Its special tokens: {some}.'
    )
  special.update({first: known[first], last: known[last]})
  meta = dict(start=known[first], end=known[last], controls=special)
  text = json.dumps(spec, ensure_ascii=False, separators=(',', ':'))
  return read(meta, {FILE: text.encode()}, path)


def read(
  meta: Mapping[str, Any], files: Mapping[str, bytes], where: Any = FILE
) -> Tokenizer:
  """The tokenizer as it was saved; its tokenizer.json is whole, for others to read.

  Raises:
    Mistake: the package `tokenizers` cannot run the file, named `where`.
  """
  import tokenizers

  spec = json.loads(files[FILE])
  controls = meta['controls']
  try:
    runs = tokenizers.Tokenizer.from_str(json.dumps(pipeline.without(spec, controls)))
  except Exception as error:  # `tokenizers` raises no narrower kind.
    raise Mistake(f'{where} is no tokenizer that can be run: {error}') from error
  model = spec['model']
  merges = model['type'] == 'BPE' and not model.get('ignore_merges')
  # Only a model that looks whole strings up could find a hidden name in the text.
  reachable = not (merges or pipeline.is_byte_level(spec))

  def encode(text: str) -> list[int]:
    text = text.replace(pipeline.HIDDEN, pipeline.LOST) if reachable else text
    return runs.encode(text, add_special_tokens=False).ids

  def whole(text: str) -> np.ndarray:
    return np.array(encode(text), np.int32)

  by_word = pipeline.splits_at_space(spec, controls)
  return store.Table(
    name='hf',
    start=meta['start'],
    end=meta['end'],
    controls=controls,
    files=files,
    pieces=pipeline.pieces(spec, controls),
    ids=store.Words(_WORD, encode).ids if by_word else whole,
    leading=pipeline.leading(spec),
  )


def with_controls(
  tokenizer: Tokenizer, files: Mapping[str, bytes]
) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
  """A function from a text to its ids and the bounds of each in it: int32 [n], [n, 2].

  In that text alone a control token's hidden name (see pipeline.py) is the token, with
  what the file says of white space beside it; all else is text, as for `encode`.
  """
  import tokenizers

  spec = pipeline.without(json.loads(files[FILE]), tokenizer.controls, heard=True)
  runs = tokenizers.Tokenizer.from_str(json.dumps(spec))

  def encode(text: str) -> tuple[np.ndarray, np.ndarray]:
    found = runs.encode(text, add_special_tokens=False)
    return np.array(found.ids, np.int32), np.array(found.offsets).reshape(-1, 2)

  return encode


def read_spec(path: epath.Path) -> dict[str, Any]:
  """What a tokenizer.json, or GPT-2's pair of files, says.

  Raises:
    Mistake: there is no such file, or it is damaged.
  """
  if path.name in {name for pair in PAIRS for name in pair}:
    path = path.parent
  try:
    if not path.is_dir():
      return dict(json.loads(path.read_bytes()))
    if (path / FILE).exists():
      return dict(json.loads((path / FILE).read_bytes()))
    for vocab, merges in PAIRS:
      if (path / vocab).exists() and (path / merges).exists():
        table = json.loads((path / vocab).read_bytes())
        return _gpt2(table, (path / merges).read_bytes().decode())
  except FileNotFoundError as error:
    raise Mistake(f'{path}: no such tokenizer file or folder.') from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise Mistake(f'{path} is damaged or no tokenizer: {error!r}') from error
  pairs = ' nor '.join(f'{vocab} with {merges}' for vocab, merges in PAIRS)
  raise Mistake(f'{path} holds no tokenizer: neither {FILE} nor {pairs}.')


def _whole(spec: dict[str, Any]) -> dict[str, Any]:
  spec['model'].setdefault('type', 'BPE')  # Old files of BPE do not say it.
  spec['added_tokens'] = [
    dict(t, id=int(t['id']), content=t['content'], special=t['special'])
    for t in spec.get('added_tokens') or []
  ]
  pipeline.unknown_token(spec)
  if max(pipeline.ids_by_name(spec).values(), default=-1) < 0:
    raise ValueError('an empty vocabulary')
  return spec


def _gpt2(vocab: dict[str, int], merges: str) -> dict[str, Any]:
  """What a tokenizer.json of GPT-2 says; of control tokens the pair says nothing."""
  lines = merges.split('\n')
  lines = lines[1:] if lines[0].startswith('#version') else lines
  level = dict(type='ByteLevel', add_prefix_space=False, trim_offsets=True)
  controls = [name for name in vocab if name in STARTS or name in ENDS]
  return dict(
    version='1.0',
    truncation=None,
    padding=None,
    added_tokens=[_added(name, vocab[name]) for name in controls],
    normalizer=None,
    pre_tokenizer=dict(level, use_regex=True),
    post_processor=None,
    decoder=dict(level, use_regex=True),
    model=dict(
      type='BPE',
      vocab=vocab,
      merges=[line.split(' ') for line in lines if line.strip()],
    ),
  )


def _added(name: str, index: int) -> dict[str, Any]:
  flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
  return dict(id=index, content=name, **flags, special=True)


def _edge(
  path: Any,
  key: str,
  name: str | None,
  known: Mapping[str, int],
  special: Mapping[str, int],
  usual: Sequence[str],
) -> str | None:
  if name is None:
    return next((n for n in usual if n in special), None)
  if name not in known:
    near = lookup.nearest(name, special)
    raise Mistake(f'{path} has no token {name!r} for {key}=: {near}')
  return name
