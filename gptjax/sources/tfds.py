"""TensorFlow Datasets without TensorFlow: sets prepared as array_record files.

docs/data.md shows how to make one from one's own JSON lines.
Source: https://www.tensorflow.org/datasets/data_source
"""

import functools
import hashlib
from typing import Any

from etils import epath

from gptjax.lookup import nearest
from gptjax.sources import records
from gptjax.sources.files import CHUNK
from gptjax.sources.records import Records
from gptjax.words import Mistake


def tfds(name: str, split: str = 'train', data_dir: str | None = None) -> Records:
  """Records of a set that lies prepared on disk; its Text fields are bytes.

  name: as tfds.builder takes it: 'name', 'name/config', 'name/config:version'.
  split: of that set, slices such as 'train[:10%]' included.
  data_dir: folder of prepared sets; None is TFDS_DATA_DIR, then TFDS's own default.

  Raises:
    Mistake: no such set or split, or it is not prepared as array_record.
  """
  import tensorflow_datasets

  title = f'tfds:{name}'
  try:
    builder: Any = tensorflow_datasets.builder(name, data_dir=data_dir)
  except (tensorflow_datasets.core.DatasetNotFoundError, ValueError):
    where = data_dir or 'the folder of TFDS (TFDS_DATA_DIR)'
    raise Mistake(
      f'{title}: no such set in {where}; docs/data.md shows how to prepare one.'
    ) from None
  if not builder.info.splits:
    raise Mistake(
      f'{title} is not prepared in {builder.data_dir}: nothing is downloaded at run '
      'time; docs/data.md shows how.'
    )
  try:
    info = builder.info.splits[split]
    rows = builder.as_data_source(split=split)
  except RuntimeError:
    raise Mistake(
      f'{title} in {builder.data_dir} is prepared as {builder.info.file_format.value}: '
      "prepare it with file_format='array_record'."
    ) from None
  except (ValueError, KeyError):
    known = nearest(split, builder.info.splits)
    raise Mistake(f'{title} has no split {split!r}: {known}') from None
  return records.not_empty(
    Records(
      size=len(rows),
      read=functools.partial(_read, rows),
      place=functools.partial(_place, f'{title}@{split}'),
      digest=_digest(info.file_instructions),
    ),
    title,
  )


def _read(rows: Any, index: int) -> dict[str, Any]:
  return rows[index]


def _place(title: str, index: int) -> str:
  return f'{title}:{index + 1}'


def _digest(instructions: list[Any]) -> str:
  total = hashlib.sha256(b'tfds')
  for part in instructions:
    total.update(f'{part.skip} {part.take}'.encode())
    with epath.Path(part.filename).open('rb') as file:
      while data := file.read(CHUNK):
        total.update(data)
  return total.hexdigest()
