"""Takes weights in and out: published ones to a run folder, a run to other tools.

  python -m gptjax.convert --source=hf:DIR --target=runs/mine   # or a name of the hub
  python -m gptjax.convert --source=smollm2 --target=runs/smollm2
  python -m gptjax.convert --source=gguf:FILE --target=runs/mine
  python -m gptjax.convert --source=runs/mine --target=hf:DIR [--dtype=bfloat16]
  python -m gptjax.convert --source=runs/mine --target=gguf:FILE --dtype=q8_0
  python -m gptjax.convert --source=runs/lora --target=hf:DIR [--merge]

hf:DIR is a folder that transformers loads (of a run with adapters one that peft loads,
or with --merge the whole model), gguf:FILE is for llama.cpp and ollama. What is read
and what is refused is told in docs/weights.md.

Exit codes: 0 done, 1 failure, 2 a mistake in the command, 130 Ctrl-C.
"""

import types

from gptjax import flags
from gptjax.mistakes import Mistake

OPTIONS = {
  'source': flags.Flag('', 'A run folder, hf:X, gguf:FILE or smollm2.'),
  'target': flags.Flag('', 'What is written: a new run folder, hf:DIR or gguf:FILE.'),
  'step': flags.STEP,
  'dtype': flags.Flag(
    '',
    'Of hf:DIR and gguf:FILE [as the source; float32 of a run that was trained].',
    choices=('', 'float32', 'float16', 'bfloat16', 'q8_0'),
  ),
  'merge': flags.Flag(False, 'Adapters multiplied into the weights.'),
}


def main(values: types.SimpleNamespace) -> None:
  """Reads one and writes the other."""
  for name in ('source', 'target'):
    if not getattr(values, name):
      raise Mistake(f'--{name} is needed: {OPTIONS[name].help}')
  from gptjax.export import convert  # JAX takes seconds to import.

  convert(
    values.source,
    values.target,
    step=values.step,
    dtype=values.dtype,
    merge=values.merge,
  )


if __name__ == '__main__':
  flags.command(__doc__, main, OPTIONS)
