"""Characters: one id for each that the training text has, in the order of Unicode.

The setting of character-level language models (65 ids on tinyshakespeare). A character
that the training text lacks has no id: it is refused rather than replaced, so that what
is encoded can always be read back, and bits per byte mean what they say.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gptjax.tokenizers import store
from gptjax.words import Mistake, Tokenizer

FILE = 'chars.txt'


def chars(
  texts: Callable[[], Iterable[str]], controls: Sequence[str] = ()
) -> Tokenizer:
  """One id per character of the texts, then the control tokens.

  Args:
    texts: gives the training texts.
    controls: names of further control tokens.

  Raises:
    Mistake: the texts are empty. Encoding raises it for a character without an id.
  """
  seen: set[str] = set()
  for text in texts():
    seen.update(store.plain(text))
  if not seen:
    raise Mistake('tokenizer chars: the training text is empty.')
  files = {FILE: ''.join(sorted(seen)).encode()}
  return read(store.number(len(seen), controls), files)


def read(meta: Mapping[str, Any], files: Mapping[str, bytes]) -> Tokenizer:
  """The tokenizer as it was saved: chars.txt holds its characters in order."""
  known = files[FILE].decode()
  points = _points(known)
  # By code point, one past the highest for all that are above it; -1 has no id.
  ids = np.full(points[-1] + 2, -1, np.int32)
  ids[points] = np.arange(len(points))

  def encode(text: str) -> np.ndarray:
    found = ids[np.minimum(_points(text), len(ids) - 1)]
    if (found < 0).any():
      char = text[int(np.argmax(found < 0))]
      raise Mistake(
        f'tokenizer chars: the text has {char!r} (U+{ord(char):04X}), which is not '
        f'among the {len(known)} characters of the training text. The tokenizers bytes '
        'and sentencepiece take any text.'
      )
    return found

  controls = meta['controls']
  return store.Table(
    name='chars',
    start=meta['start'],
    end=meta['end'],
    controls=controls,
    files=files,
    pieces=[*(char.encode() for char in known), *(len(controls) * [b''])],
    ids=encode,
  )


def _points(text: str) -> np.ndarray:
  return np.frombuffer(text.encode('utf-32-le'), np.dtype('<u4'))
