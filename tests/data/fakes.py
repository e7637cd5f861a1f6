"""Tasks without files, for the tests of this room."""

import hashlib

from gptjax.tokenizers.bytes import bytes as byte_tokenizer
from gptjax.words import Text


class Lines:
  """A task of given texts."""

  kind = 'text'

  def __init__(self, texts, name='lines'):
    self.texts, self.name = list(texts), name
    self.digest = hashlib.sha256('\0'.join(self.texts).encode()).hexdigest()

  def __len__(self):
    return len(self.texts)

  def example(self, index):
    return Text(self.texts[index])


def words(count, seed, name='lines', longest=60):
  """`count` different texts of many lengths: each says which one it is."""
  state, texts = seed * 7919 + 1, []
  for n in range(count):
    state = (state * 1103515245 + 12345) % 2**31
    texts.append(f'{name}{n}:' + 'ab c' * (state % longest))
  return Lines(texts, name)


TOKENIZER = byte_tokenizer()


def documents(batch, tokenizer=TOKENIZER):
  """(row, ids of inputs, ids of targets) of every segment of a batch, in order."""
  found = []
  for row in range(batch['tokens'].shape[0]):
    segments = batch['segments'][row]
    for n in range(1, int(segments.max()) + 1):
      mine = segments == n
      found.append(
        (row, batch['tokens'][row][mine].tolist(), batch['targets'][row][mine].tolist())
      )
  return found
