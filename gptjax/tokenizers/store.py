"""A tokenizer as a table of pieces, and the folder that keeps it.

Every tokenizer of this room is a `Table`: the bytes of each id, and a function from
text to ids. The pieces of `encode(text)`, joined, are the UTF-8 bytes of the text, so
decoding, and decoding a stream id by id, is the same few lines for all of them.

The folder holds `meta.json`, whose digest covers all that decides the ids, and the
files of the kind of tokenizer (a sentencepiece model, a tokenizer.json).
"""

import dataclasses
import functools
import hashlib
import importlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from gptjax import files as disk
from gptjax import lookup
from gptjax.words import Mistake, Tokenizer

FORMAT = 1
META = 'meta.json'
START, END = '<|start|>', '<|end|>'
# What a trained tokenizer holds besides text: ids that only code can write.
CONTROLS = (
  START,  # Before a document.
  END,  # After a document.
  '<|system|>',
  '<|user|>',
  '<|assistant|>',
  '<|tool|>',
  '<|turn|>',  # After a turn.
  '<|mask|>',
  '<|sep|>',
  '<|cls|>',
)


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """A Tokenizer (see words.py): its pieces, and how text becomes ids.

  Pickling keeps the files and builds the rest anew, so that worker processes get it
  whole; encoding from several threads at once is safe.
  """

  name: str  # Its module in this room.
  start: int
  end: int
  controls: Mapping[str, int]
  files: Mapping[str, bytes] = dataclasses.field(repr=False)
  pieces: Sequence[bytes] = dataclasses.field(repr=False)  # By id; b'' for controls.
  ids: Callable[[str], np.ndarray] = dataclasses.field(repr=False)
  leading: bytes = b''  # What encoding puts before every text; decode takes it off.

  @property
  def size(self) -> int:
    """Ids in use."""
    return len(self.pieces)

  @functools.cached_property
  def digest(self) -> str:
    """sha256 (hex) of the controls and the files."""
    return _digest(self._meta(), self.files)

  def encode(self, text: str) -> np.ndarray:
    """Ids of a text, int32 [tokens], none of them a control token's."""
    return self.ids(plain(text))

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Text of ids; bytes that are no UTF-8 (a cut character) become U+FFFD."""
    text = b''.join(map(self.piece, np.asarray(ids).tolist()))
    return text.removeprefix(self.leading).decode('utf-8', 'replace')

  def piece(self, index: int) -> bytes:
    """The bytes of an id."""
    if not 0 <= index < len(self.pieces):
      raise IndexError(f'{self.name} has ids 0 to {len(self.pieces) - 1}, not {index}')
    return self.pieces[index]

  def save(self, folder: Any) -> None:
    """Writes the folder that `load` reads; meta.json last."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in self.files.items():
      disk.write(folder / name, data)
    meta = dict(self._meta(), size=self.size, digest=self.digest)
    disk.write(folder / META, json.dumps(meta, indent=2).encode())

  def _meta(self) -> dict[str, Any]:
    return dict(
      format=FORMAT,
      name=self.name,
      start=self.start,
      end=self.end,
      controls=dict(self.controls),
      files=sorted(self.files),
    )

  def __reduce__(self):
    return _read, (self._meta(), dict(self.files))


class Words(dict[str, bytes]):
  """Ids of words, as bytes of int32: made by `encode` once, then looked up.

  For tokenizers whose text falls apart into words (the matches of `pattern`, which
  leave nothing out) that do not touch each other's ids. Text repeats its words, so
  this is several times as fast as the tokenizer itself.
  """

  LENGTH, COUNT = 64, 1 << 18  # Longest word kept, characters; most words kept.
  BLOCK = 1 << 20  # Characters cut at a time: the words of a huge text fill the memory.

  def __init__(self, pattern: re.Pattern[str], encode: Callable[[str], Sequence[int]]):
    super().__init__()
    self.pattern = pattern
    self.encode = encode

  def __missing__(self, word: str) -> bytes:
    ids = np.array(self.encode(word), np.int32).tobytes()
    if len(word) <= self.LENGTH:
      if len(self) >= self.COUNT:
        self.clear()
      self[word] = ids
    return ids

  def ids(self, text: str) -> np.ndarray:
    """Of the words of a text, one after the other, int32 [tokens]."""
    words = itertools.chain.from_iterable(self.cut(text))
    return np.frombuffer(bytearray().join(map(self.__getitem__, words)), np.int32)

  def cut(self, text: str) -> Iterator[list[str]]:
    """The words, in blocks; the last word of a block may go on, so it is cut again."""
    at, block = 0, self.BLOCK
    while len(text) - at > block:
      *words, last = filter(None, self.pattern.findall(text, at, at + block))
      if words:
        yield words
        at += block - len(last)
        block = self.BLOCK
      else:
        block *= 2
    yield self.pattern.findall(text, at)


def load(folder: Any) -> Tokenizer:
  """The tokenizer that `save` wrote into a folder.

  Raises:
    Mistake: no tokenizer there, a file missing, or one that is not as it was saved.
  """
  folder = epath.Path(folder)
  meta = _parse(folder)
  files = {}
  for name in meta['files']:
    try:
      files[name] = (folder / name).read_bytes()
    except FileNotFoundError as error:
      raise Mistake(f'the tokenizer in {folder} lacks its file {name}.') from error
  digest = _digest(meta, files)
  if digest != meta['digest']:
    raise Mistake(
      f'the tokenizer in {folder} is damaged: {", ".join([META, *files])} add up to '
      f'digest {digest[:12]}, not to {meta["digest"][:12]} as it was saved.'
    )
  return _read(meta, files)


def compression(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
  """UTF-8 bytes per token over texts; their ends of document are not counted.

  Raises:
    Mistake: the texts are empty.
  """
  size = tokens = 0
  for text in texts:
    size += len(plain(text).encode())
    tokens += len(tokenizer.encode(text))
  if not tokens:
    raise Mistake('no compression without text: the texts given are empty.')
  return size / tokens


def plain(text: str) -> str:
  """The text as valid Unicode: what UTF-8 can write.

  A str may hold surrogates (a JSON escape cut in two, a file name): a pair becomes the
  character it means, a lone one U+FFFD. Valid text comes back as it is.
  """
  try:
    text.encode()
  except UnicodeEncodeError:
    return text.encode('utf-16-le', 'surrogatepass').decode('utf-16-le', 'replace')
  return text


def number(first: int, controls: Iterable[str]) -> dict[str, Any]:
  """Ids from `first` on for the control tokens, as the entries of a meta.json.

  `controls` are names that come after those that every trained tokenizer has.

  Raises:
    Mistake: a name that is empty, no str, or there already.
  """
  names = list(CONTROLS)
  for name in controls:
    if not isinstance(name, str) or not name.strip() or name in names:
      raise Mistake(
        f'tokenizer: {name!r} cannot be a further control token: names are words such '
        f'as <|code|>, each once, beside {", ".join(CONTROLS)}.'
      )
    names.append(name)
  ids = {name: first + i for i, name in enumerate(names)}
  return dict(controls=ids, start=ids[START], end=ids[END])


def _read(meta: Mapping[str, Any], files: Mapping[str, bytes]) -> Tokenizer:
  lookup.find('tokenizers', meta['name'])
  module = importlib.import_module(f'gptjax.tokenizers.{meta["name"]}')
  return module.read(meta, files)


def _parse(folder: epath.Path) -> dict[str, Any]:
  path = folder / META
  try:
    meta = json.loads(path.read_bytes())
    known = meta['format'] == FORMAT
    meta['name'], meta['start'], meta['end'], meta['controls'], meta['digest'][:12]
    list(meta['files'])
  except FileNotFoundError as error:
    raise Mistake(f'no tokenizer in {folder}: it holds no {META}.') from error
  except (ValueError, KeyError, TypeError) as error:
    raise Mistake(f'{path} is damaged: it is not what a tokenizer saves.') from error
  if not known:
    raise Mistake(f'{path}: format {meta["format"]}, where this version reads {FORMAT}')
  return meta


def _digest(meta: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
  keys = ('format', 'name', 'start', 'end', 'controls')
  said = json.dumps({key: meta[key] for key in keys}, sort_keys=True)
  digest = hashlib.sha256(said.encode())
  for name in sorted(files):
    digest.update(f'\n{name} {len(files[name])}\n'.encode())
    digest.update(files[name])
  return digest.hexdigest()
