"""Shows the exact tokens, loss weights, segments and positions that a run will see.

  python -m gptjax.view --config=experiments/small.py --n=3
  python -m gptjax.view --config=experiments/small.py --html=rows.html

The first rows of training. Each segment is a piece of a document, or a conversation:
what is only read, then what is predicted, with its weight in the loss. A bar parts the
pieces; a character that cannot be shown, and every byte that is no character, is
written as its code. How many conversations are cut or left out is said before.
"""

import html
import itertools
import pathlib
import sys
import tempfile
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gptjax import flags
from gptjax.mistakes import Failure

OPTIONS = {
  'n': flags.Flag(3, 'Rows to show.', low=1),
  'html': flags.Flag('', 'Write one self-contained page to this file instead.'),
  'workdir': flags.Flag('', 'Run folder whose tokenizer to use [runs/NAME], if there.'),
  'data': flags.DATA,
}
_SIGNS = {'\n': '↵', '\t': '⇥', '\r': '␍'}
_BAR = '│'


class Token(NamedTuple):
  """One id as it is shown; weight None is padding's and the first input's."""

  text: str
  id: int
  position: int
  weight: float | None


def show_piece(tokenizer: Any, index: int) -> str:
  """An id in printable characters; control tokens by name."""
  names = {i: name for name, i in tokenizer.controls.items()}
  if index in names:
    return names[index]
  if not 0 <= index < tokenizer.size:
    return f'<{index}?>'
  text = tokenizer.piece(index).decode('utf-8', 'backslashreplace')
  return ''.join(map(_show, text))


def _show(character: str) -> str:
  if character in _SIGNS:
    return _SIGNS[character]
  ours = character == _BAR or character in _SIGNS.values()
  if character.isprintable() and not ours:
    return character
  return character.encode('unicode_escape').decode()


def segments(batch: Any, tokenizer: Any, row: int) -> Iterator[tuple[int, list[Token]]]:
  """The segments of a row, from left to right: their number and tokens.

  The first token is the first input, then come the targets: position p of a target is
  the position that predicts it. Padding is left out. Where the last target alone weighs
  and there are scores, it is a label.
  """
  part = {k: np.asarray(x)[row] for k, x in batch.items() if np.ndim(x) > 1}
  places = np.arange(len(part['tokens']))
  numbers = part.get('segments', np.ones_like(places))
  positions = part.get('positions', places)
  for number, group in itertools.groupby(places, key=lambda n: int(numbers[n])):
    at = list(group)
    if not number:
      continue
    first = int(part['tokens'][at[0]])
    found = [Token(show_piece(tokenizer, first), first, int(positions[at[0]]), None)]
    weights = part['weights'][at]
    labelled = 'scores' in part and not weights[:-1].any() and weights[-1]
    for n in at:
      target, weight = int(part['targets'][n]), float(part['weights'][n])
      text = show_piece(tokenizer, target)
      if labelled and n == at[-1]:
        text = f'label {part["scores"][n]:g}'
      found.append(Token(text, target, int(positions[n]), weight))
    yield number, found


def _counts(batch: Any, row: int) -> str:
  weights = np.asarray(batch['weights'])[row]
  padding = int((np.asarray(batch['segments'])[row] == 0).sum())
  return (
    f'{len(weights)} places, {np.count_nonzero(weights)} trained on, '
    f'{padding} of padding'
  )


def rows_text(batch: Any, tokenizer: Any, n: int) -> str:
  """The first n rows of a batch in plain text, safe to print."""
  lines = []
  for row in range(min(n, len(batch['tokens']))):
    lines.append(f'row {row}: {_counts(batch, row)}')
    for number, tokens in segments(batch, tokenizer, row):
      last = tokens[-1].position
      lines.append(f'  segment {number}, positions {tokens[0].position} to {last}')
      for weight, run in itertools.groupby(tokens, key=lambda t: t.weight):
        label = 'read' if weight is None else f'weight {weight:g}'
        lines.append(f'    {label:10} {_BAR.join(t.text for t in run)}')
  return '\n'.join(lines)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'">
<title>Rows of training</title>
<style>
:root { color-scheme: light dark }
body { font: 15px/1.7 system-ui, sans-serif; max-width: 60em; margin: 2em auto;
  padding: 0 1em }
h2 { font-size: 1.1em; margin: 2em 0 .3em }
small { opacity: .7 }
p.s { margin: .4em 0; padding-left: .8em; border-left: 4px solid hsl(var(--h) 60% 50%);
  font: 14px/1.7 ui-monospace, monospace; overflow-wrap: anywhere;
  white-space: pre-wrap }
p.s span { border-radius: 3px; padding: 1px 0; background: hsl(var(--h) 60% 50% / .18) }
p.s span:nth-child(even) { background: hsl(var(--h) 60% 50% / .38) }
p.s span.z, i.z { background: none; opacity: .55; text-decoration: underline dotted;
  font-style: normal }
</style>
<h1>Rows of training</h1>
<p>Each bar is a segment: attention does not leave it. Shaded pieces are predicted and
count in the loss; <i class="z">dotted ones</i> are only read. Point at a piece for its
id, position and weight.</p>
"""


def rows_html(batch: Any, tokenizer: Any, n: int) -> str:
  """The first n rows of a batch as one self-contained page without scripts."""
  parts = [_PAGE]
  for row in range(min(n, len(batch['tokens']))):
    parts.append(f'<h2>Row {row} <small>{_counts(batch, row)}</small></h2>\n')
    for number, tokens in segments(batch, tokenizer, row):
      hue = (number * 137) % 360
      spans = ''.join(_span(token) for token in tokens)
      parts.append(f'<p class="s" style="--h:{hue}">{spans}</p>\n')
  return ''.join(parts) + '</html>\n'


def _span(token: Token) -> str:
  read = not token.weight
  weight = 'only read' if token.weight is None else f'weight {token.weight:g}'
  about = f'id {token.id}, position {token.position}, {weight}'
  shown = html.escape(token.text).replace('↵', '↵\n')
  return f'<span{" class=z" if read else ""} title="{about}">{shown}</span>'


def first_rows(config: Any, n: int, workdir: str, data: str) -> tuple[Any, Any]:
  """(batch, tokenizer): the first n rows that the config's run trains on."""
  from etils import epath

  from gptjax import files, run
  from gptjax.config import check_config

  place = epath.Path(workdir)
  with tempfile.TemporaryDirectory(prefix='view') as folder:
    if not (place / 'tokenizer').exists():
      place = epath.Path(folder)
    check_config(config)
    mixture = run.make_mixture(config, data)
    given = run.make_origin(config, files.say)
    tokenizer = run.make_tokenizer(config, mixture, place, given, files.say)
    source = run.make_source(
      config, mixture, tokenizer, place, files.say, batch_size=n, hosts=1, host=0
    )
    batch = source.next()
    source.close()
  return batch, tokenizer


def main(values: types.SimpleNamespace) -> None:
  """Prints the rows, or writes the page."""
  config = values.config.to_dict()
  name = pathlib.Path(values.config_file.partition(':')[0]).stem
  workdir = values.workdir or f'runs/{name}'
  batch, tokenizer = first_rows(
    config, values.n, workdir, config['data'] or values.data
  )
  if values.html:
    try:
      pathlib.Path(values.html).write_text(
        rows_html(batch, tokenizer, values.n), encoding='utf-8'
      )
    except OSError as error:
      raise Failure(f'cannot write {values.html}: {error.strerror}.') from None
    print(f'wrote {values.html}')
    return
  text = rows_text(batch, tokenizer, values.n)
  encoding = sys.stdout.encoding or 'utf-8'
  print(text.encode(encoding, 'backslashreplace').decode(encoding))


if __name__ == '__main__':
  flags.command(__doc__, main, OPTIONS, config=True)
