"""Documents of any format: text files, JSON lines, Parquet, TFDS, Hugging Face."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from gptjax.lookup import nearest
from gptjax.sources import hf, jsonl, names, parquet, tfds
from gptjax.sources import text as sources_text
from gptjax.sources.records import Records, check_on_bad
from gptjax.tasks import split as splitting
from gptjax.tasks.examples import (
  DROP,
  check_control,
  digest_kind,
  dropped,
  read_control,
)
from gptjax.tasks.find import data_folder, locate, of_split
from gptjax.tasks.split import Documents
from gptjax.words import Mistake, Text

_FORMATS = ('text', 'jsonl', 'parquet', 'tfds', 'hf')
_BY = ('hash', 'position')


def text(
  path: str,
  split: str = 'train',
  document: str = 'file',
  field: str = 'text',
  format: str | None = None,
  splits: Mapping[str, float] | None = None,
  by: str = 'hash',
  val_path: str | None = None,
  control: Mapping[str, str] | None = None,
  control_drop: float = DROP,
  on_bad: str = 'error',
  data: str | None = None,
  where: str = '',
) -> Documents:
  """The task of plain documents: example(i) is a Text.

  path: a file, a folder, a glob (`**` crosses folders), several separated by commas;
    'tfds:NAME@SPLIT', 'hf:NAME:CONFIG@SPLIT' (SPLIT is train if not said); a set of
    the folder of data sets, such as 'tinyshakespeare'.
  split: train, val, test or all.
  document: file, paragraph or line; of text files only.
  field: of JSON lines, Parquet, TFDS and HF records: the one that holds the text.
  format: text, jsonl, parquet, tfds or hf; None is told from the name.
  splits: fractions of val and test; 0 is none.
  by: hash of each document, or position in the whole text. By position one document
    alone is cut itself, to the byte.
  val_path: a file of its own for val; train and test then share the rest.
  control, control_drop: fields of the records, see examples.make_task.
  on_bad: error, or skip: bad records are passed over and counted in `skipped`.
  data: the folder of data sets; None is GPTJAX_DATA.
  where: the config key of these arguments, for messages that say what to type.

  Raises:
    Mistake: nothing found, bad input, an empty split (with what to change).
  """
  check_on_bad(on_bad)
  check_control(control, control_drop)
  _check('by', by, _BY)
  shares = splitting.fractions(splits)
  if val_path:
    path, split, shares = of_split(path, split, shares, val_path, None)
  splitting.check_split(split, shares, path)
  control = dict(control or {})
  fields = [field, *control.values()]
  records, kind = _open(path, document, fields, format, on_bad, data)
  content = functools.partial(_content, records, field)
  said = functools.partial(_said, records, field, control)
  found = splitting.survey(records, said, on_bad, content if control else None)
  skipped = records.skipped + found.skipped
  if not len(found.indices):
    raise Mistake(f'{path} holds no document ({skipped} bad ones skipped).')
  read = functools.partial(_read, records, field, control)
  if control and split == 'train':
    read = functools.partial(dropped, read, control_drop)
  task = Documents(path, 'text', found.indices, read, records.where, '', skipped)
  alone = len(found.indices) == 1 and not control
  if by == 'position' and alone and split != 'all':
    return _piece(task, splitting.bounds(int(found.sizes[0]), shares)[split], split)
  cure = _cure(document if kind == 'text' else '', by, where)
  chosen = splitting.choose(found, split, shares, by, path, cure)
  return dataclasses.replace(
    task,
    indices=found.indices[chosen],
    digest=splitting.digest(
      digest_kind('text', control, control_drop, split), found.prints[chosen]
    ),
  )


def _check(key: str, value: str, allowed: Sequence[str]) -> None:
  if value not in allowed:
    raise Mistake(f'{key}={value!r}: {nearest(str(value), allowed)}')


def _open(
  path: str,
  document: str,
  fields: Sequence[str],
  kind: str | None,
  on_bad: str,
  data: str | None,
) -> tuple[Records, str]:
  """The records that `path` names, `fields` of them, and their format."""
  if kind is not None:
    _check('format', kind, _FORMATS)
  prefix, _, rest = (path or '').partition(':')
  if prefix in ('tfds', 'hf') and kind in (None, prefix):
    path, kind = rest, prefix
  if kind in ('tfds', 'hf'):
    name, _, split = path.partition('@')
    return _open_set(kind, name, split or 'train', data), kind
  files = locate(path, data)
  kinds = {names.format_of(f): f for f in files}
  if kind is None and len(kinds) > 1:
    raise Mistake(
      f'{path} holds files of several formats ({", ".join(kinds.values())}): choose '
      "with a pattern such as notes/**/*.md, or format='text'."
    )
  kind = kind or next(iter(kinds))
  if kind == 'text':
    return sources_text.text(files, document, on_bad), kind
  if kind == 'jsonl':
    return jsonl.jsonl(files, on_bad), kind
  return parquet.parquet(files, on_bad, columns=list(fields)), kind


def _open_set(kind: str, name: str, split: str, data: str | None) -> Records:
  folder = data_folder(data)
  if kind == 'tfds':
    # In the folder of data sets if it lies there, else where TFDS keeps its sets.
    first = name.split('/')[0].split(':')[0]
    here = folder and (epath.Path(folder) / first).exists()
    return tfds.tfds(name, split, folder if here else None)
  here = folder and (epath.Path(folder) / name).exists()
  return hf.hf(os.path.join(folder, name) if folder and here else name, split)


def _text(records: Records, field: str, index: int) -> str:
  record = records[index]
  value = record.get(field)
  if value is None:
    fields = nearest(field, record) if record else 'The record is empty.'
    raise ValueError(f'no field {field!r}: {fields}'.rstrip('.'))
  if isinstance(value, bytes):
    value = value.decode()
  if not isinstance(value, str):
    raise ValueError(f'field {field!r} is no text but {type(value).__name__}')
  if not value or value.isspace():
    raise ValueError(f'field {field!r} is empty')
  return value


def _content(records: Records, field: str, index: int) -> bytes:
  # Half of a surrogate pair, which JSON can say, cannot be encoded: a ValueError too.
  return _text(records, field, index).encode()


def _said(
  records: Records, field: str, control: Mapping[str, str], index: int
) -> bytes:
  """What decides the tokens of a document: its text, and what is asked for."""
  content = _content(records, field, index)
  if not control:
    return content
  return content + json.dumps(read_control(records[index], control)).encode()


def _read(records: Records, field: str, control: Mapping[str, str], index: int) -> Text:
  asked = read_control(records[index], control) if control else ()
  return Text(_text(records, field, index), asked)


def _piece(task: Documents, bound: tuple[int, int], split: str) -> Documents:
  """One document by position: the part of it that lies in the split."""
  read = functools.partial(_read_piece, task.read, *bound)
  data = read(int(task.indices[0])).text.encode()
  if not data:
    raise Mistake(f'{task.name}: split {split!r} is empty by position: see splits.')
  prints = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
  return dataclasses.replace(task, read=read, digest=splitting.digest('text', prints))


def _read_piece(read: Callable[[int], Any], start: int, end: int, index: int) -> Text:
  whole = read(index)
  return whole._replace(text=splitting.cut_text(whole.text, start, end))


def _cure(document: str, by: str, where: str) -> str:
  """What to type where a split is too small."""
  key = f'--config.{where.removeprefix("c.")}.' if where else ''
  finer = {'file': 'paragraph', 'paragraph': 'line'}
  cures = [f'{key}document={finer[document]}'] if document in finer else []
  cures += [f'{key}by=position'] if by == 'hash' else []
  return f'try {" or ".join([*cures, f"a file of its own, {key}val_path=FILE"])}'
