"""Trains what a config says; the same command again goes on where it stopped.

  python -m gptjax.main --config=experiments/small.py
  python -m gptjax.main --config=small:text=my/*.txt --workdir=runs/mine
  python -m gptjax.main --config=small --config.optim.lr=3e-4

Exit codes: 0 done, 1 failure, 2 a mistake in the command or the config, 75 stopped (run
the same command again), 130 Ctrl-C before the first step or a second one.
"""

import pathlib
import types

from gptjax import flags

OPTIONS = {
  'workdir': flags.Flag('', 'Run folder, local or gs:// [runs/NAME of the config].'),
  'fresh': flags.Flag(False, 'Move an old run folder to NAME.1 and start anew.'),
  'data': flags.DATA,
}


def main(values: types.SimpleNamespace) -> None:
  """Trains."""
  flags.huge_pages()
  from gptjax import train  # JAX takes seconds to import; mistakes come first.
  from gptjax.report import page

  name = pathlib.Path(values.config_file.partition(':')[0]).stem
  workdir = values.workdir or f'runs/{name}'
  train.train(
    values.config,
    workdir,
    overrides=values.overrides,
    fresh=values.fresh,
    data=values.data,
  )
  page.write([workdir])


if __name__ == '__main__':
  flags.command(__doc__, main, OPTIONS, config=True)
