"""The folder of a run: its lock, its config, where it was run, and --fresh.

What a run leaves in it is listed in WORKSPACE.md. One process at a time may write; the
kernel frees the lock when that process ends, however it ends. Readers take none, and
remote folders have none.
"""

import datetime
import errno
import fcntl
import fnmatch
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from gptjax import files
from gptjax.lookup import flatten
from gptjax.steps import anywhere, together
from gptjax.words import Failure, Mistake

FORMAT = 1  # Of config.json and of all that it stands for.
# Dotted keys (shell wildcards) that an old run may be gone on with changed.
MAY_CHANGE = (
  'steps',
  'evals',
  'evals.*',
  'save_every',
  'keep',
  'keep_best',
  'keep_best.*',
  'early_stop',
  'early_stop.*',
  'max_bad_steps',
  'log_every',
  'track',
  'profile',
  'profile.*',
  'mesh',
  'mesh.*',
  'rules',
  'rules.*',
  'microbatches',
  'samples',
  'samples.*',
  'compile_cache',
  'data',
)
_PACKAGES = (
  'gptjax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'numpy',
  'sentencepiece',
  'tokenizers',
)
_SECRET = re.compile(r'(?i)(--?[\w.]*(?:api_key|secret|password|credential)[\w.]*=)\S+')


class Folder(NamedTuple):
  """A run folder open for writing: keep it, for the lock goes with it or `close()`."""

  path: epath.Path
  new: bool  # No run was here before, or one that never made a step.
  changed: dict[str, tuple[Any, Any]]  # Dotted key -> (old, new), all allowed.
  close: Callable[[], None]


def open_folder(
  path: epath.PathLike,
  config: Mapping[str, Any],
  *,
  fresh: bool = False,
  may_change: Sequence[str] = MAY_CHANGE,
  overrides: Iterable[str] = (),
  say: Callable[[str], None] = files.say,
) -> Folder:
  """Makes a run folder or opens an old one, takes its lock and writes down its config.

  `fresh` moves an old run to NAME.1 (NAME.2, ...) first. `may_change` are patterns of
  dotted config keys; `overrides` are lines for overrides.txt.

  Raises:
    Mistake: another process writes there, the folder is no run's, or the config
      differs from the run's in a key that may not change.
    Failure: the folder cannot be made or written.
  """
  import jax

  path = epath.Path(path)
  config = _plain(config)
  main = jax.process_index() == 0
  release, refusal = lambda: None, None
  try:
    if main:
      with files.reporting(f'cannot write the run folder {path}'):
        release = _claim(path, fresh, say)
  except (Mistake, Failure) as error:
    refusal = error
  if anywhere(refusal is not None):  # Or the other processes would wait for ever.
    raise refusal or Mistake(f'{path} was refused to the first process.')
  try:
    new = not _begun(path)
    changed = {} if new else _compare(path, config, may_change)
    together('gptjax config compared')
    if main:
      with files.reporting(f'cannot write the run folder {path}'):
        if new:
          _drop_tokenizer(path, config)
        _write_down(path, config, new or bool(changed), overrides)
    together('gptjax run folder made')
  except BaseException:
    release()
    raise
  return Folder(path, new, changed, release)


def read_config(path: epath.PathLike) -> dict[str, Any]:
  """The config of the run in a folder, as nested dicts.

  Raises:
    Mistake: no run is there, or it was written in a newer format.
  """
  file = epath.Path(path) / 'config.json'
  if not file.exists():
    raise Mistake(f'{path} is no run folder: it has no config.json.')
  try:
    read = json.loads(file.read_text())
    form, config = read['format'], read['config']
  except (ValueError, KeyError, TypeError) as error:
    kind = type(error).__name__
    raise Mistake(f'{file} is damaged: {kind}: {error}.') from None
  if form > FORMAT:
    raise Mistake(f'{file} has format {form}; this version reads up to {FORMAT}.')
  return config


def _claim(
  path: epath.Path, fresh: bool, say: Callable[[str], None]
) -> Callable[[], None]:
  """Makes the folder, moving an old one away if asked, and takes its lock."""
  if path.exists() and not path.is_dir():
    raise Mistake(f'{path} is a file; a run needs a folder of its own.')
  found = sorted(p.name for p in path.iterdir()) if path.exists() else []
  stray = [name for name in found if name != 'lock' and not name.endswith('.part')]
  if stray and 'config.json' not in found:
    raise Mistake(
      f'{path} is not empty and no run folder (no config.json; it holds '
      f'{", ".join(stray[:3])}): give the run a folder of its own.'
    )
  path.mkdir(parents=True, exist_ok=True)
  release = _lock(path)
  if fresh and stray:
    target = files.free_name(path)
    files.move(path, target)
    say(f'The old run is in {target}.')
    release()  # Its lock went with it.
    path.mkdir(parents=True, exist_ok=True)
    release = _lock(path)
  return release


def _lock(path: epath.Path) -> Callable[[], None]:
  """Takes the kernel's lock on path/lock; returns what gives it back.

  Raises:
    Mistake: another process has it.
  """
  if not files.is_local(path):
    return lambda: None
  file = open(path / 'lock', 'a+')  # noqa: SIM115 (held until released)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    file.seek(0)
    holder = file.read().strip() or 'another process'
    file.close()
    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
      raise
    raise Mistake(
      f'{path} is in use by {holder}: wait for it, end it, or take another folder.'
    ) from None
  if not _same(file.fileno(), path / 'lock'):
    # It was moved away by another --fresh between open and lock.
    file.close()
    path.mkdir(parents=True, exist_ok=True)
    return _lock(path)
  file.truncate(0)
  file.write(f'pid {os.getpid()} on {socket.gethostname()}\n')
  file.flush()
  return file.close


def _begun(path: epath.Path) -> bool:
  """Whether a run in the folder made a step: one refused before is begun anew."""
  log = path / 'metrics.jsonl'
  steps = path / 'checkpoints'
  return (path / 'config.json').exists() and bool(
    (log.exists() and log.stat().length)
    or (steps.exists() and any(p.name != 'scores.json' for p in steps.iterdir()))
  )


def _drop_tokenizer(path: epath.Path, config: Mapping[str, Any]) -> None:
  """Of a start under another config; its shards are known by their data's digest."""
  if (path / 'tokenizer').exists():
    try:
      same = read_config(path) == config
    except Mistake:
      same = False
    if not same:
      (path / 'tokenizer').rmtree()


def _same(descriptor: int, path: epath.Path) -> bool:
  try:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))
  except FileNotFoundError:
    return False


def _compare(
  path: epath.Path, config: Mapping[str, Any], may_change: Sequence[str]
) -> dict[str, tuple[Any, Any]]:
  """Dotted keys that differ from the run's config: (old, new).

  Raises:
    Mistake: one of them is not allowed to.
  """
  old, new = dict(flatten(read_config(path))), dict(flatten(config))
  changed = {
    key: (old.get(key), new.get(key))
    for key in [*old, *(key for key in new if key not in old)]
    if old.get(key) != new.get(key)
  }
  refused = [
    f'{key}: {json.dumps(a)} -> {json.dumps(b)}'
    for key, (a, b) in changed.items()
    if not any(fnmatch.fnmatchcase(key, pattern) for pattern in may_change)
  ]
  if refused:
    shown = '; '.join(refused[:8]) + ('; ...' if len(refused) > 8 else '')
    raise Mistake(
      f'{path} holds a run of another config ({shown}): take these back, give another '
      '--workdir, or move the old run away with --fresh.'
    )
  return changed


def _write_down(
  path: epath.Path, config: Mapping[str, Any], differs: bool, overrides: Iterable[str]
) -> None:
  if differs:  # First: it is by this file that a folder counts as a run's.
    text = json.dumps({'format': FORMAT, 'config': config}, indent=2)
    files.write(path / 'config.json', text + '\n')
  lines = ''.join(f'{line}\n' for line in overrides)
  files.write(path / 'overrides.txt', lines)
  place = path / 'environment.txt'
  before = place.read_text() + '\n' if place.exists() else ''
  files.write(place, before + environment())


def environment() -> str:
  """Lines on what runs where: no environment variable, nothing secret."""
  import jax

  devices = jax.devices()
  command = _SECRET.sub(r'\1...', shlex.join([sys.executable, *sys.argv]))
  found = {
    'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': command,
    'code': _revision(),
    'python': platform.python_version(),
    'system': f'{platform.platform()}, {os.cpu_count()} CPUs',
    'devices': f'{len(devices)} x {devices[0].device_kind} ({devices[0].platform})',
    'processes': str(jax.process_count()),
  }
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return ''.join(f'{name}: {value}\n' for name, value in found.items())


def _revision() -> str:
  """The git commit of the code at hand, '+changes' behind it if it was edited."""
  here = pathlib.Path(__file__).parent

  def git(*args: str) -> str:
    command = ['git', '-C', str(here), *args]
    return subprocess.run(
      command, capture_output=True, text=True, timeout=10, check=True
    ).stdout.strip()

  try:
    if not git('ls-files', '--', __file__):  # Installed inside somebody's repository.
      return 'no git revision'
    revision = git('rev-parse', 'HEAD')
    edited = git('status', '--porcelain', '--untracked-files=no', '--', str(here))
  except (OSError, subprocess.SubprocessError):
    return 'no git revision'
  return revision + ('+changes' if edited else '')


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
  """The config as JSON gives it back, so that old and new compare equal.

  Raises:
    Mistake: a value that JSON cannot hold.
  """
  for key, value in flatten(config):
    try:
      json.dumps(value)
    except (TypeError, ValueError):
      raise Mistake(
        f'c.{key} is a {type(value).__name__}: a config holds numbers, strings, '
        'booleans, lists and dicts only.'
      ) from None
  return json.loads(json.dumps(_dicts(config)))


def _dicts(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {str(k): _dicts(v) for k, v in value.items()}
  return value
