"""What is trained, written under another name: a run folder, hf:DIR or gguf:FILE.

All is written aside and takes its name when it is whole.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Generator
from typing import Any

import jax
from etils import epath

from gptjax import checkpoint, files, folder, sharding
from gptjax.interop import publish
from gptjax.models.settings import Settings, make_settings
from gptjax.origin import Origin, find_origin
from gptjax.words import Mistake, Params

Say = Callable[[str], None]


def convert(
  source: str,
  target: str,
  *,
  step: str | int = '',
  dtype: str = '',
  merge: bool = False,
  say: Say = files.say,
) -> None:
  """Writes what is trained under `source` as `target`.

  Args:
    source: a run folder, hf:X, gguf:FILE or smollm2.
    target: a new run folder, hf:DIR or gguf:FILE.
    step: of a run; '' is best where it keeps a best, else latest.
    dtype: float32, float16, bfloat16 or (GGUF) q8_0; '' is that of the source, and of
      a run that was trained float32. A run folder holds float32 always.
    merge: write the whole model of a run that trained adapters; hf:DIR may also hold
      the adapters alone, for peft.
    say: takes lines for the user.

  Raises:
    Mistake: the source is not there, the target is, or it cannot hold the model.
    Failure: the target cannot be written.
  """
  kind, _, rest = target.partition(':')
  kind = kind if kind in ('hf', 'gguf') else 'run'
  if kind != 'run' and not rest:
    raise Mistake(f'--target={target}: a name is missing.')
  place = files.absolute(epath.Path(target if kind == 'run' else rest).expanduser())
  _check_target(target, kind, place, dtype)
  origin = find_origin(source, step, say)
  model = _describe(origin)
  dtype = dtype or origin.source.get('dtype', 'float32')
  write = _writer(kind, origin, model, dtype, merge, say)
  mesh = sharding.make_mesh({'data': 1}, jax.local_devices()[:1])
  with (
    sharding.use(mesh),
    files.reporting(f'cannot write {target}'),
    _aside(place) as part,
  ):
    if kind != 'gguf':
      part.mkdir()
    number = write(part)
  say(f'{source} (step {number}) is in {place}.')


def _writer(
  kind: str,
  origin: Origin,
  model: publish.Model,
  dtype: str,
  merge: bool,
  say: Say,
) -> Callable[[epath.Path], int]:
  """What writes to a path and returns the step; mistakes come before anything is read.

  Raises:
    Mistake: that target cannot hold the model, or not its adapters alone.
  """
  adapted = None if merge else origin.adapted
  if adapted and kind != 'hf':
    raise Mistake(
      f'{origin.name} holds adapters: --merge writes the whole model, and hf:DIR '
      'without it the adapters for peft.'
    )
  if adapted and adapted.also:
    raise Mistake(
      f'{origin.name} trained {", ".join(adapted.also)} beside its adapters, for which '
      'an adapter for peft has no place: --merge writes the whole model.'
    )
  if kind != 'run':
    check = publish.check_gguf if kind == 'gguf' else publish.check_folder
    check(model, dtype)

  def write(path: epath.Path) -> int:
    number, weights = (adapted or origin).weights()
    if kind == 'run':
      _write_run(path, origin, number, weights, say)
    elif kind == 'gguf':
      publish.write_gguf(path, model, weights, dtype)
    elif adapted:
      base = _published_name(adapted.base())
      publish.write_adapter(path, model, weights, base, adapted.dropout, dtype)
    else:
      publish.write_folder(path, model, weights, dtype)
    return number

  return write


def _published_name(name: str) -> str:
  """The folder, or name of the hub, of the model that adapters stand over."""
  place = epath.Path(name)
  if (place / 'config.json').exists():
    name = folder.read_config(place).get('source', {}).get('name', name)
  return name.removeprefix('hf:')


def _check_target(target: str, kind: str, place: epath.Path, dtype: str) -> None:
  if dtype and kind == 'run':
    raise Mistake('--dtype is for hf:DIR and gguf:FILE; a run folder holds float32.')
  if place.exists() and not (place.is_dir() and not any(place.iterdir())):
    raise Mistake(f'--target={target} is there already: give another, or remove it.')
  if place.exists() and kind == 'gguf':
    raise Mistake(f'--target={target} is a folder; a file is written.')


@contextlib.contextmanager
def _aside(place: epath.Path) -> Generator[epath.Path]:
  """Yields a path beside `place` to write to, moved there if all went well."""
  local = files.is_local(place)
  if local:
    place.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    prefix=f'.{place.name}.', dir=place.parent if local else None
  ) as temporary:
    part = epath.Path(temporary) / place.name
    yield part
    if not local:
      copy = files.copy_tree if part.is_dir() else files.copy
      copy(part, place)
    elif place.is_dir():
      os.rmdir(place)  # Empty, as was checked; a folder that is not stays.
    if local:
      os.replace(part, place)


def _write_run(
  path: epath.Path, origin: Origin, step: int, weights: Params, say: Say
) -> None:
  """A run folder that was never trained: its config says the model and the source."""
  config = {
    'model': dict(origin.model),
    'mixture': {'length': origin.length},
    'source': {'name': origin.name, **origin.source},
  }
  origin.tokenizer.save(path / 'tokenizer')
  if origin.template:
    origin.template.save(path / 'tokenizer')
  saves = checkpoint.open_checkpoints(path / 'checkpoints', say=say)
  with contextlib.closing(saves):
    saves.save(step, {'params': weights}, {}, {})
  text = json.dumps({'format': folder.FORMAT, 'config': config}, indent=2)
  files.write(path / 'config.json', text + '\n')
  files.write(path / 'environment.txt', folder.environment())


def settings_of(origin: Origin) -> Settings:
  """The settings of an origin's model, with its context as their length."""
  told = {k: v for k, v in origin.model.items() if k not in ('name', 'preset')}
  size = origin.tokenizer.size
  told['vocab'] = min(size, told.get('rows') or size)
  c = make_settings(origin.model.get('preset'), told)
  learned = c.positions == 'learned'
  return c if learned else make_settings(None, {**vars(c), 'length': origin.length})


def _describe(origin: Origin) -> publish.Model:
  """An origin as other tools are told of it."""
  if origin.model.get('name') != 'transformer':
    raise Mistake(
      f'{origin.name} is no transformer, and no other tool knows its model.'
    )
  tokenizer, source = origin.tokenizer, origin.source
  names = {index: name for name, index in tokenizer.controls.items()}
  usual = {'bos_token': names[tokenizer.start], 'eos_token': names[tokenizer.end]}
  called = getattr(origin.template, 'names', {})  # By a template of Jinja.
  special = source.get('special') or {
    **usual,
    'pad_token': usual['eos_token'],
    **called,
  }
  generation = dict(source.get('generation', {}))
  ends = generation.pop('eos_token_id', None) or ()
  ends = list(ends) if isinstance(ends, list | tuple) else [ends]
  if not ends and origin.template:
    ends = [*origin.template.stops]
  return publish.Model(
    name=origin.name,
    settings=settings_of(origin),
    tokenizer=tokenizer,
    template=origin.template.jinja if origin.template else '',
    family=source.get('family', ''),
    special={key: name for key, name in special.items() if name in tokenizer.controls},
    stops=ends or [tokenizer.end],
    generation=generation,
    about=_about(origin),
  )


def _about(origin: Origin) -> dict[str, Any]:
  """What the model card tells of it."""
  told = {
    'Context': f'{origin.length:,} tokens',
    'Tokenizer': f'{origin.tokenizer.name}, {origin.tokenizer.size:,} ids',
  }
  place = epath.Path(origin.name)
  config = folder.read_config(place) if (place / 'config.json').exists() else {}
  if tasks := config.get('mixture', {}).get('tasks'):
    names = dict.fromkeys(task.get('name', key) for key, task in tasks.items())
    told['Trained on'] = f'the tasks {", ".join(names)}; {config["steps"]:,} steps'
  if start := config.get('init'):
    told['Started from'] = f'`{start}`, whose licence holds for this model too'
  if 'name' in origin.source:
    told['Weights from'] = f'`{origin.source["name"]}`'
  token = next(iter(origin.tokenizer.controls))
  return {**told, 'token': token, 'license': origin.source.get('license', '')}
