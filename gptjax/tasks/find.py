"""Where data sets lie: --data=DIR, then c.data, then GPTJAX_DATA."""

import difflib
import fnmatch
import glob
import os
from collections.abc import Mapping
from typing import NamedTuple

from etils import epath

from gptjax.sources import names
from gptjax.words import Mistake


class Known(NamedTuple):
  """A set that configs name by itself; its files lie below the folder of data sets."""

  file: str
  origin: str
  licence: str
  val: str = ''  # Files of their own for these splits; '': cut from `file`.
  test: str = ''


SETS = {
  'alpaca_small': Known(
    'alpaca_small/instructions.json',
    'github.com/rasbt/LLMs-from-scratch, '
    'ch07/01_main-chapter-code/instruction-data.json',
    'Apache-2.0',
  ),
  'boolq': Known(
    'core/boolq.jsonl',
    'github.com/mosaicml/llm-foundry, scripts/eval/local_data',
    'repository Apache-2.0, questions CC BY-SA 3.0',
  ),
  'gsm8k': Known(
    'gsm8k/train.jsonl',
    'github.com/openai/grade-school-math, grade_school_math/data',
    'MIT',
    test='gsm8k/test.jsonl',
  ),
  'hatespeech': Known(
    'hatespeech/labeled_data.csv',
    'github.com/t-davidson/hate-speech-and-offensive-language, data/labeled_data.csv',
    'MIT',
  ),
  'multi30k': Known(
    'multi30k/train.{}.gz',
    'github.com/multi30k/dataset, data/task1/raw',
    'none stated; its images are for non-commercial research and education only',
    val='multi30k/val.{}.gz',
    test='multi30k/test_2016_flickr.{}.gz',
  ),
  'scitldr': Known(
    'scitldr/train.jsonl',
    'github.com/allenai/scitldr, SciTLDR-Data/SciTLDR-A',
    'Apache-2.0',
    val='scitldr/dev.jsonl',
    test='scitldr/test.jsonl',
  ),
  'sgd': Known(
    'sgd/train/dialogues_*.json',
    'github.com/google-research-datasets/dstc8-schema-guided-dialogue, train and dev',
    'CC BY-SA 4.0',
    val='sgd/dev/dialogues_*.json',
  ),
  'tinyshakespeare': Known(
    'tinyshakespeare/input.txt',
    'github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt',
    'text in the public domain, repository MIT',
  ),
  'triviaqa': Known(
    'core/triviaqa_sm_sub.jsonl',
    'github.com/mosaicml/llm-foundry, scripts/eval/local_data',
    'repository Apache-2.0, of the questions it says nothing',
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
  known, folder = _known(name), data_folder(data)
  origin = f' It comes from {known.origin} ({known.licence}).' if known else ''
  if folder is None:
    raise Mistake(
      f'data set {name!r}: no folder of data sets is given, say --data=DIR, c.data or '
      f'GPTJAX_DATA.{origin}'
    )
  path = epath.Path(folder) / (SETS[name].file if name in SETS else name)
  if not (path.parent if glob.has_magic(path.name) else path).exists():
    near = '' if known else _near(name, folder)
    raise Mistake(
      f'data set {name!r}: no {path} (folder searched: {folder}).{near}{origin}'
    )
  return str(path)


def locate(path: str, data: str | None) -> list[str]:
  """The files that a path names: in the working folder, else that of data sets.

  Raises:
    Mistake: none there; which folders were searched.
  """
  folder = data_folder(data)
  if path and _known(path) and (folder or not os.path.exists(path)):
    return names.find(find_data(path, data))
  try:
    return names.find(path)
  except Mistake as mistake:
    if not folder or not path or not path.strip() or os.path.isabs(path):
      raise
    try:
      return names.find(
        ','.join(os.path.join(folder, p.strip()) for p in path.split(','))
      )
    except Mistake as second:
      raise Mistake(f'{mistake} Also {second}') from None


def _known(name: str) -> Known | None:
  """The set of this name, or the one that a file of this name belongs to."""
  for known in SETS.values():
    for file in filter(None, (known.file, known.val, known.test)):
      if fnmatch.fnmatchcase(name, file.replace('{}', '*')):
        return known
  return SETS.get(name)


def of_split(
  path: str,
  split: str,
  shares: Mapping[str, float],
  val_path: str | None,
  test_path: str | None,
) -> tuple[str, str, dict[str, float]]:
  """The path that holds a split, the part of it that is meant, and what is cut from it.

  val_path, test_path: files of their own, those of the set in SETS if it has some;
    then nothing of `path` is cut off for the split.
  """
  known = SETS.get(path)
  if known:
    path = known.file
    val_path, test_path = val_path or known.val, test_path or known.test
  own = {'val': val_path, 'test': test_path}
  shares = {name: 0.0 if own[name] else share for name, share in shares.items()}
  if own.get(split):
    return str(own[split]), 'all', shares
  return path, split, shares


def _near(name: str, folder: str) -> str:
  root = epath.Path(folder)
  there = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
  close = difflib.get_close_matches(name.split('/')[0], there, n=1, cutoff=0.5)
  return f' Did you mean {close[0]!r}?' if close else ''
