"""Bytes: the tokenizer that needs no training. Ids 0 to 255 are the bytes of UTF-8."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gptjax.tokenizers import store
from gptjax.words import Tokenizer

# Made before `bytes` means the tokenizer.
_BYTES = [bytes([byte]) for byte in range(256)]


def bytes(controls: Sequence[str] = ()) -> Tokenizer:
  """256 byte ids and the control tokens; `controls` are names of further ones."""
  return read(store.number(256, controls), {})


def read(meta: Mapping[str, Any], files: Mapping[str, Any]) -> Tokenizer:
  """The tokenizer as it was saved: `meta` says it all."""
  controls = meta['controls']
  return store.Table(
    name='bytes',
    start=meta['start'],
    end=meta['end'],
    controls=controls,
    files=files,
    pieces=[*_BYTES, *(len(controls) * [b''])],
    ids=lambda text: np.frombuffer(text.encode(), np.uint8).astype(np.int32),
  )
