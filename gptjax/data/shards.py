"""Large corpora, tokenized once into files that are memory-mapped afterwards.

A folder holds, for each shard, `00003.tokens` (ids of its documents, one after
another, uint16 or uint32, little-endian), `00003.lengths` (uint32 ids of each
document), of conversations and labels `00003.weights` (float32, as many as ids), of
labels `00003.scores` too, and, written last, `00003.json` (which documents, sizes and
sha256 sums); `index.json` counts them all. What has no .json does not count, so a
killed writer loses at most its unfinished shards. Sizes and lengths are checked when
the folder is opened, the ids of a shard before their first use.
"""

import contextlib
import functools
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from gptjax import files
from gptjax.data import tokens as tokens_lib
from gptjax.data.fit import PLAIN, Recipe
from gptjax.data.parallel import Span, tokenized
from gptjax.data.tokens import Coded, Tokens
from gptjax.words import Failure, Mistake, Task, Tokenizer

FORMAT = 1  # Of the files; another number is written anew.
SMALL = 32 << 20  # Bytes of text up to which a corpus is tokenized in memory.
SHARD = 64 << 20  # Bytes of text in a shard, about.

Say = Callable[[str], None]


def tokenize(
  task: Task,
  tokenizer: Tokenizer,
  folder: Any = None,
  *,
  recipe: Recipe = PLAIN,
  workers: int | None = None,
  say: Say | None = None,
  small: int = SMALL,
  shard: int = SHARD,
) -> Tokens:
  """A task's documents as ids: from memory if small, else from shards, made if need be.

  Args:
    task: texts, conversations or labels.
    tokenizer: needs `save`, and `tokenizers.store.load` to read it, for workers.
    folder: where shards lie, each corpus in a folder of its own below it. None: small
      corpora stay in memory, others go to the user's cache folder.
    recipe: what else decides the ids of conversations and labels.
    workers: processes that tokenize; 0: this one. None: one a CPU, 0 for small ones.
    say: takes lines for the user.
    small: bytes of text up to which a corpus is small.
    shard: bytes of text in a shard, about.

  Raises:
    Mistake: no documents, or an example of another kind.
    Failure: a damaged shard.
  """
  if not len(task):
    raise Mistake(f'{task.name}: no documents. Check the path, the split, on_bad.')
  mean = _mean_size(task)
  large = mean * len(task) > small
  if folder is None and not large:
    return tokens_lib.in_memory(task, tokenizer, recipe)
  digest = tokens_lib.data_digest(task, tokenizer, recipe)
  root = cache_folder() / 'tokens' if folder is None else epath.Path(folder)
  path = root / f'{_plain(task.name)}-{digest[:16]}'
  if not _complete(path, digest):
    workers = (os.cpu_count() or 1) if workers is None and large else workers or 0
    write(
      task,
      tokenizer,
      path,
      count=max(1, int(shard / mean)),
      recipe=recipe,
      workers=workers,
      say=say,
    )
  return open_shards(path, digest)


def cache_folder() -> epath.Path:
  """The user's: $XDG_CACHE_HOME/gptjax or ~/.cache/gptjax."""
  base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return epath.Path(base) / 'gptjax'


def _plain(name: str) -> str:
  return ''.join(c if c.isalnum() or c in '-_.' else '_' for c in name)[:64]


def _mean_size(task: Task) -> float:
  """Bytes of a document, from up to 256 spread evenly."""
  at = np.unique(np.linspace(0, len(task) - 1, min(256, len(task))).astype(int))
  sizes = [tokens_lib.size_of(tokens_lib.document(task, int(i))) for i in at]
  return max(1.0, float(np.mean(sizes)))


def write(
  task: Task,
  tokenizer: Tokenizer,
  folder: Any,
  *,
  count: int,
  recipe: Recipe = PLAIN,
  workers: int = 0,
  say: Say | None = None,
) -> None:
  """Writes the shards that are missing or damaged, `count` documents each, and index.

  The same again after a kill goes on; finished shards are checked and kept.

  Raises:
    Failure: the folder cannot be written, or a worker died.
  """
  folder = epath.Path(folder)
  digest = tokens_lib.data_digest(task, tokenizer, recipe)
  spans = [
    (n, at, min(at + count, len(task)))
    for n, at in enumerate(range(0, len(task), count))
  ]
  with files.reporting(f'cannot write shards in {folder}'):
    folder.mkdir(parents=True, exist_ok=True)
    missing = [s for s in spans if not _finished(folder, digest, *s)]
    say = say if len(spans) > 1 else None
    if say and missing:
      say(
        f'tokenizing {task.name}: {len(missing)} of {len(spans)} shards to write '
        f'in {folder}'
      )
    for span, coded in tokenized(task, tokenizer, recipe, missing, workers):
      _write_shard(folder, digest, span, coded)
      if say:
        say(f'tokenized {task.name}: shard {span[0] + 1} of {len(spans)}')
    shards = [_read_sealed(folder / f'{n:05d}.json') for n, _, _ in spans]
    index = {
      'format': FORMAT,
      'task': task.name,
      'digest': digest,
      'data': task.digest,
      'tokenizer': tokenizer.digest,
      'type': tokens_lib.id_type(tokenizer).name,
      'documents': sum(s['documents'] for s in shards),
      'tokens': sum(s['tokens'] for s in shards),
      'bytes': sum(s['bytes'] for s in shards),
      'shards': shards,
    }
    if tokens_lib.EXTRAS[task.kind]:
      index |= {key: sum(s[key] for s in shards) for key in ('cut', 'left')}
    _write(folder / 'index.json', _sealed(index))


def _write_shard(
  folder: epath.Path, digest: str, span: Span, coded: list[Coded]
) -> None:
  number, first, stop = span
  lengths = np.concatenate([some.lengths for some in coded])
  left = sum(some.left for some in coded)
  assert len(lengths) + left == stop - first
  arrays = {
    'tokens': np.concatenate([some.ids for some in coded]),
    'lengths': lengths.astype(np.uint32),
  }
  for name in coded[0].extras:
    arrays[name] = np.concatenate([some.extras[name] for some in coded])
  sums = {}
  for kind, array in arrays.items():
    data = array.astype(array.dtype.newbyteorder('<')).tobytes()
    _write(folder / f'{number:05d}.{kind}', data)
    sums[kind] = {'size': len(data), 'sha256': hashlib.sha256(data).hexdigest()}
  shard = {
    'format': FORMAT,
    'digest': digest,
    'first': first,
    'documents': len(lengths),
    'tokens': int(lengths.sum()) - len(lengths),
    'bytes': sum(some.bytes for some in coded),
    'files': sums,
  }
  if coded[0].extras:
    shard |= {'cut': sum(some.cut for some in coded), 'left': left}
  _write(folder / f'{number:05d}.json', _sealed(shard))


def _finished(
  folder: epath.Path, digest: str, number: int, first: int, stop: int
) -> bool:
  """Whether a shard is there, whole, and of these documents."""
  shard = _read_sealed(folder / f'{number:05d}.json')
  wanted = {'format': FORMAT, 'digest': digest, 'first': first}
  if any(shard.get(k) != v for k, v in wanted.items()):
    return False
  if shard['documents'] + shard.get('left', 0) != stop - first:
    return False
  for kind, file in shard['files'].items():
    path = folder / f'{number:05d}.{kind}'
    if not path.exists() or path.stat().length != file['size']:
      return False
    if files.sha256(path) != file['sha256']:
      return False
  return True


def _complete(folder: epath.Path, digest: str) -> bool:
  """Whether the index is whole and no file of it is gone."""
  index = _read_sealed(folder / 'index.json')
  if index.get('format') != FORMAT or index.get('digest') != digest:
    return False
  there = {p.name for p in folder.iterdir()}
  return all(
    f'{n:05d}.{kind}' in there
    for n, shard in enumerate(index['shards'])
    for kind in shard['files']
  )


def open_shards(folder: Any, digest: str | None = None) -> Tokens:
  """The documents of a folder of shards.

  Raises:
    Failure: no whole index, or one of other data, or a file that is cut or changed;
      the line names the file and the cure. Ids are checked at their first use.
  """
  folder = epath.Path(folder)
  index = _read_sealed(folder / 'index.json')
  if not index or index['format'] != FORMAT:
    raise Failure(
      f'{folder}/index.json is missing, damaged or of another format: run the '
      'training command again, which writes it.'
    )
  if digest is not None and index['digest'] != digest:
    raise Failure(f'{folder} holds other data or another tokenizer: delete it.')
  shards, kind = index['shards'], np.dtype(index['type']).newbyteorder('<')
  for number, shard in enumerate(shards):
    for name, file in shard['files'].items():
      path = folder / f'{number:05d}.{name}'
      size = path.stat().length if path.exists() else 0
      if size != file['size']:
        raise _damaged(path, f'{size:,} bytes where {file["size"]:,} were written')

  def load(number: int, name: str, dtype: np.dtype) -> np.ndarray:
    path = folder / f'{number:05d}.{name}'
    return _checked(path, shards[number]['files'][name]['sha256'], dtype)

  lengths = [
    load(n, 'lengths', np.dtype('<u4')).astype(np.int64) for n in range(len(shards))
  ]
  extras = [name for name in shards[0]['files'] if name not in ('tokens', 'lengths')]
  return tokens_lib.make_tokens(
    index['task'],
    index['digest'],
    lengths,
    lambda number: load(number, 'tokens', kind),
    index['bytes'],
    {
      name: functools.partial(load, name=name, dtype=np.dtype('<f4')) for name in extras
    },
    index.get('cut', 0),
    index.get('left', 0),
  )


def _checked(path: epath.Path, sha256: str, dtype: np.dtype) -> np.ndarray:
  """A file mapped into memory after its sum was found right.

  One on a remote file system is copied to a temporary file, which goes with the map.
  """
  with contextlib.ExitStack() as stack:
    source = path
    if not files.is_local(path):
      folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='shard'))
      source = epath.Path(folder) / path.name
      files.copy(path, source)
    if files.sha256(source) != sha256:
      raise _damaged(path, 'its sha256 is not that of what was written')
    if not source.stat().length:
      return np.zeros(0, dtype)  # A shard whose examples were all left out.
    return np.memmap(os.fspath(source), dtype, 'r').view(np.ndarray)


def _damaged(path: epath.Path, why: str) -> Failure:
  return Failure(
    f'{path} is damaged ({why}): delete this file and run the same command again; '
    'only its shard is written anew.'
  )


def _write(path: epath.Path, data: bytes) -> None:
  """The whole file or none, also where several hosts write the same shards at once."""
  if not files.is_local(path):
    path.write_bytes(data)
    return
  part = path.parent / f'.{path.name}.{uuid.uuid4().hex}'
  try:
    with open(part, 'wb') as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def _sealed(content: dict[str, Any]) -> bytes:
  """JSON with its own sha256, so that a changed digit shows."""
  seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
  return json.dumps({**content, 'sha256': seal}, indent=1).encode()


def _read_sealed(path: epath.Path) -> dict[str, Any]:
  """What `_sealed` wrote; {} where it is missing or damaged."""
  try:
    content = json.loads(path.read_text())
    seal = content.pop('sha256')
    good = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
  except (OSError, ValueError, AttributeError, KeyError, TypeError):
    return {}
  return content if seal == good else {}
