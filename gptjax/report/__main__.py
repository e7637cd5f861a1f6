"""A run folder, or several side by side, as one self-contained page: report.html.

python -m gptjax.report --run=runs/small
python -m gptjax.report --run=runs/small --run=runs/other --out=compare.html
"""

import types

from gptjax import flags
from gptjax.mistakes import Mistake

OPTIONS = {
  'run': flags.Flag([], 'A run folder; several are compared.', many=True),
  'out': flags.Flag('', 'The page [report.html in the first run folder].'),
}


def main(values: types.SimpleNamespace) -> None:
  """Writes the page and says where."""
  if not values.run:
    raise Mistake('--run=DIR is needed; several are compared.')
  from gptjax.report import page

  print(page.write(values.run, values.out))


if __name__ == '__main__':
  flags.command(__doc__, main, OPTIONS)
