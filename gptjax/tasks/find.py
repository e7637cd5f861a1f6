"""Where data sets lie: --data=DIR, then c.data, then GPTJAX_DATA."""

import difflib
import os
from typing import NamedTuple

from etils import epath

from gptjax.words import Mistake


class Known(NamedTuple):
  """A set that configs name by itself."""

  file: str  # Below the folder of data sets.
  origin: str
  licence: str


SETS = {
  'tinyshakespeare': Known(
    'tinyshakespeare/input.txt',
    'github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt',
    'text in the public domain, repository MIT',
  ),
}


def data_folder(data: str | None = None) -> str | None:
  """The folder of data sets: `data`, else the variable GPTJAX_DATA, else None."""
  return data or os.environ.get('GPTJAX_DATA') or None


def find_data(name: str, data: str | None = None) -> str:
  """The path of a set of SETS, or of a file or folder, in the folder of data sets.

  Raises:
    Mistake: it is not there: name, folder searched, origin and licence if known.
  """
  known, folder = SETS.get(name), data_folder(data)
  origin = f' It comes from {known.origin} ({known.licence}).' if known else ''
  if folder is None:
    raise Mistake(
      f'data set {name!r}: no folder of data sets is given, say --data=DIR, c.data or '
      f'GPTJAX_DATA.{origin}'
    )
  path = epath.Path(folder) / (known.file if known else name)
  if not path.exists():
    near = '' if known else _near(name, folder)
    raise Mistake(
      f'data set {name!r}: no {path} (folder searched: {folder}).{near}{origin}'
    )
  return str(path)


def _near(name: str, folder: str) -> str:
  root = epath.Path(folder)
  there = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
  close = difflib.get_close_matches(name.split('/')[0], there, n=1, cutoff=0.5)
  return f' Did you mean {close[0]!r}?' if close else ''
