"""10,000 strings: random Unicode, code, Chinese, imitated control tokens, runs."""

import pathlib
import random

HAN = '的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能'
IMITATED = [
  *(
    '<|start|>',
    '<|end|>',
    '<|user|>',
    '<|assistant|>',
    '<|turn|>',
    '<0x41>',
    '<0xE2>',
  ),
  *('<unk>', '<s>', '</s>', '<|im_start|>', '<|endoftext|>', '\u2581', '\u2581\u2581'),
]
PARTS = [
  *('a', 'aa', 'aaa', ' ', '  ', '=', '--', 'ab', 'ba', '\n', '0', '12', '.', 'the '),
  *('an', 'na', 'e', '\t', '\r\n', '(', '))', 'self.', 'é', '🙂', '\x00', '\u200d'),
]
PLANES = [
  (0, 0x7F),
  (0x80, 0x7FF),
  (0x800, 0xD7FF),
  (0xE000, 0xFFFF),
  (0x10000, 0x10FFFF),
]
LONG = ['', ' ' * 200, 'a' * 3000, '\n' * 200, 'x ' * 3000]
LONG += [' ' * 65 + 'a' * 600 + '\n' * 70 + 'b']


def code():
  """Our own source."""
  package = pathlib.Path(__file__).resolve().parents[2] / 'gptjax'
  return [text for p in sorted(package.glob('*.py')) if (text := p.read_text())]


def strings(count=10_000, seed=0, imitated=()):
  draw, source = random.Random(seed), code()
  names = [*IMITATED, *imitated]

  def some(parts, most):
    return ''.join(draw.choice(parts) for _ in range(draw.randint(0, most)))

  def unicode():
    points = (draw.randint(*draw.choice(PLANES)) for _ in range(draw.randint(0, 40)))
    return ''.join(map(chr, points))

  def excerpt():
    text = draw.choice(source)
    start = draw.randrange(len(text))
    return text[start : start + draw.randint(0, 300)]

  kinds = [
    unicode,
    excerpt,
    lambda: some(HAN + '\uff0c\u3002 a1\n', 60),
    lambda: some([*names, 'hello ', 'user\n', ' ', 'x', '<', '|', '0x41', '>'], 12),
    lambda: some([p * n for p in PARTS for n in (1, 2, 5)], 30),
  ]
  return [*LONG, *(kinds[i % len(kinds)]() for i in range(count - len(LONG)))]
