"""Evaluates a trained model: on its own tasks or on others, with intervals.

  python -m gptjax.evaluate --run=runs/translate --evals=text --split=test
  python -m gptjax.evaluate --run=runs/small --evals=val,test_texts --out=scores.json
  python -m gptjax.evaluate --run=smollm2 --evals=gsm8k --limit=50 --data=DIR

A name is one of the run's c.evals; an evaluator (perplexity, text, classify), which
judges the run's first task; a task of the run; or a task by its module's name, scored
as its kind says. Intervals are 95 %, by bootstrap over the examples.

Exit codes: 0 done, 1 failure, 2 a mistake in the command, 130 Ctrl-C.
"""

import json
import math
import os
import types
from typing import Any

from gptjax import flags
from gptjax.mistakes import Mistake

OPTIONS = {
  'run': flags.RUN,
  'step': flags.STEP,
  'evals': flags.Flag('', 'What is evaluated: names, with commas between them.'),
  'split': flags.Flag(
    '',
    'Of the data [test; of an evaluator of c.evals its own].',
    choices=('', 'train', 'val', 'test', 'all'),
  ),
  'limit': flags.Flag(0, 'Examples of each, from the first; 0: all.', low=0),
  'max_tokens': flags.Flag(0, 'New tokens of an answer; 0: as usual.', low=0),
  'out': flags.Flag('', 'A JSON file for all of it, each answer included.'),
  'json': flags.Flag(False, 'JSON in the place of tables.'),
  'data': flags.DATA,
}


def main(values: types.SimpleNamespace) -> None:
  """Evaluates, and prints a table of each name as soon as it is there."""
  names = [name.strip() for name in values.evals.split(',') if name.strip()]
  if not values.run or not names:
    raise Mistake('--run=DIR and --evals=NAME[,NAME...] are needed.')
  folder = os.path.dirname(os.path.abspath(values.out))
  if values.out and not (os.path.isdir(folder) and not os.path.isdir(values.out)):
    raise Mistake(f'--out={values.out}: a file in a folder that is there.')
  from etils import epath

  from gptjax import evaluation, files, screen  # JAX takes seconds to import.
  from gptjax.run import open_run

  screen.compile_cache(True)
  run = open_run(values.run, step=values.step)
  found: list[dict[str, Any]] = []
  for one in evaluation.evaluate(
    run,
    names,
    split=values.split,
    limit=values.limit or None,
    max_tokens=values.max_tokens or None,
    data=values.data or '',
  ):
    found.append(one._asdict())
    if not values.json:
      print(_table(one), flush=True)
  whole = _plain({'run': run.name, 'step': run.step, 'evaluations': found})
  if values.json:
    short = [
      {k: v for k, v in e.items() if k != 'answers'} for e in whole['evaluations']
    ]
    print(json.dumps({**whole, 'evaluations': short}, ensure_ascii=False))
  if values.out:
    with files.reporting(f'cannot write {values.out}'):
      text = json.dumps(whole, ensure_ascii=False, indent=1)
      files.write(epath.Path(values.out), text + '\n')


def _table(one: Any) -> str:
  """Its numbers with their intervals, a line each, and what belongs to them."""
  lines = [
    f'{one.name}: {one.evaluator} of {one.task}, split {one.split}, '
    f'{one.examples:,} examples, {one.seconds:.1f} s'
  ]
  width = max(map(len, one.numbers))
  for name, value in one.numbers.items():
    low, high = one.intervals[name]
    lines.append(f'  {name:<{width}}  {value:>9.5g}  [{low:.5g}, {high:.5g}]')
  confusion = one.notes.get('confusion')
  if confusion:
    lines += _confusion(one.notes['labels'], confusion)
  others = {k: v for k, v in one.notes.items() if k not in ('labels', 'confusion')}
  lines += [f'  {name}: {value}' for name, value in others.items()]
  return '\n'.join(lines) + '\n'


def _confusion(labels: list[str], table: list[list[int]]) -> list[str]:
  """Rows are the right classes, columns those that they were taken for."""
  cells = [
    ['', *labels],
    *([k, *map(str, row)] for k, row in zip(labels, table, strict=True)),
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return ['  right \\ taken for:'] + [
    '  ' + '  '.join(c.rjust(w) for c, w in zip(row, widths, strict=True))
    for row in cells
  ]


def _plain(value: Any) -> Any:
  """As JSON can say it: a number that is not finite is its name."""
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == '__main__':
  flags.command(__doc__, main, OPTIONS)
