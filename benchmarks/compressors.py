"""Bits per byte of general compressors on a split, given the training text as prefix.

  python -m benchmarks.compressors --config=experiments/small.py

What a language model has to beat: bits that `xz -9` needs for the validation text after
the training text, per UTF-8 byte of it. Prints {"split", "bytes", "xz -9"} as JSON.
"""

import json
import lzma
import types

from gptjax import flags

OPTIONS = {'split': flags.Flag('val', 'Which split.', choices=('val', 'test'))}


def main(values: types.SimpleNamespace) -> None:
  from gptjax import run

  config = values.config.to_dict()
  mixture = run.make_mixture(config, '')
  names = list(mixture)
  train = '\n\n'.join(run.texts(mixture)).encode()
  held = {name: (run.make_task(config, name, values.split, ''), 1.0) for name in names}
  text = '\n\n'.join(run.texts(held)).encode()
  size = len(lzma.compress(train + b'\n\n' + text, preset=9))
  bits = 8 * (size - len(lzma.compress(train, preset=9))) / len(text)
  found = {'split': values.split, 'bytes': len(text), 'xz -9': round(bits, 4)}
  print(json.dumps(found))


if __name__ == '__main__':
  flags.command(__doc__, main, OPTIONS, config=True)
