"""A config.json of `transformers` and our settings, in both directions."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from gptjax import files
from gptjax.interop.families import FAMILIES, HARMLESS, USUAL
from gptjax.interop.parts import among, kinds
from gptjax.lookup import nearest
from gptjax.models import rope
from gptjax.models.settings import Settings, make_settings
from gptjax.words import Mistake

FILE = 'config.json'
# Settings that decide no number of the forward pass, or that others decide.
_FREE = {
  *('vocab', 'rows', 'length', 'pattern', 'window', 'local_theta', 'attention_scale'),
  *('dropout', 'attention_dropout', 'init', 'init_std', 'init_residual'),
  *('remat', 'scan', 'dtype'),
}


def read_json(path: epath.Path) -> dict[str, Any]:
  """The object in a file of JSON.

  Raises:
    Mistake: there is no such file, or it holds something else.
  """
  try:
    found = json.loads(path.read_bytes())
  except FileNotFoundError:
    raise Mistake(f'{path.parent} has no {path.name}.') from None
  except OSError as error:
    raise Mistake(f'{path}: {files.cause(error)}.') from None
  except ValueError as error:
    raise Mistake(f'{path} is no JSON: {error}.') from None
  if not isinstance(found, dict):
    raise Mistake(f'{path} holds no JSON object.')
  return found


def find_family(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
  """(model_type, the config of the text model): of Gemma 3 with images, its text part.

  Raises:
    Mistake: a model_type that is not known here, or code or weights of another kind.
  """
  kind = config.get('model_type')
  if kind == 'gemma3' and isinstance(config.get('text_config'), Mapping):
    kind, config = 'gemma3_text', config['text_config']
  kind = among(kind, FAMILIES, 'model_type')
  if config.get('auto_map'):
    raise Mistake('auto_map: the model is code of its own, which is not run here.')
  if config.get('quantization_config'):
    raise Mistake('quantization_config: quantised weights are read from GGUF only.')
  return kind, config


def read_config(config: Mapping[str, Any]) -> tuple[str, Settings]:
  """(model_type, our settings) of a config.json.

  Raises:
    Mistake: something in it that is not known here, with its key.
  """
  kind, config = find_family(config)
  family = FAMILIES[kind]
  parts = (*family.parts, *USUAL)
  known = {key for part in parts for key in part.keys}
  quiet = HARMLESS | family.harmless | {'auto_map', 'quantization_config'}
  for key in config:
    if key not in known and key not in quiet:
      near = nearest(key, known).partition(' Allowed')[0]
      hint = f' {near}' if near.startswith('did you mean') else ''
      raise Mistake(
        f'{key}={config[key]!r}: {kind} has no such key here, and it may change what '
        f'the model computes.{hint} If it does not, take it out of the file.'
      )
  told: dict[str, Any] = dict(family.style)
  for part in parts:
    told |= part.read(config)
  return kind, make_settings(None, told)


def write_config(kind: str, c: Settings) -> dict[str, Any]:
  """The config.json of settings that `fits` the family."""
  family = FAMILIES[kind]
  found: dict[str, Any] = {'architectures': [family.architecture], 'model_type': kind}
  for part in family.parts:
    found |= part.write(c)
  return {**found, 'vocab_size': c.rows or c.vocab, 'initializer_range': c.init_std}


def choose_family(c: Settings, preferred: str = '') -> str:
  """The model_type whose models compute what these settings say.

  Args:
    c: the settings.
    preferred: where the weights came from; it is asked first.

  Raises:
    Mistake: no family can say it, with what is between the settings and the nearest.
  """
  differ = {kind: differences(kind, c) for kind in FAMILIES}
  order = [preferred] if preferred in FAMILIES else []
  for kind in [*order, *differ]:
    if not differ[kind]:
      return kind
  near = min(differ, key=lambda kind: len(differ[kind]))
  raise Mistake(
    f'no family of transformers computes what this model does: {near}, the nearest, '
    f'has no {", ".join(differ[near])}. Families: {", ".join(FAMILIES)}.'
  )


def differences(kind: str, c: Settings) -> list[str]:
  """Settings that a family's config.json cannot say, as 'name=value'."""
  try:
    _, back = read_config(write_config(kind, c))
  except Mistake as mistake:
    return [str(mistake)]
  mine, theirs = canonical(c), canonical(back)
  return [f'{key}={mine[key]!r}' for key in mine if mine[key] != theirs[key]]


def canonical(c: Settings) -> dict[str, Any]:
  """What the settings say of the forward pass; equal where it is the same."""
  found = {k: v for k, v in dataclasses.asdict(c).items() if k not in _FREE}
  each = kinds(c)
  local, turns = 'local' in each, c.positions == 'rope'
  found['pattern'] = each
  found['window'] = c.window if local else 0
  found['attention_scale'] = round(c.scale, 12)
  if c.norm == 'rms':
    found['norm_bias'] = False
  found['rope'] = rope.whole(c.rope)
  if not turns:
    found['theta'] = found['rope'] = 0
  elif (c.rope or {}).get('kind') == 'ntk':
    size, factor = c.head, dict(c.rope or {})['factor']
    found['theta'], found['rope'] = c.theta * factor ** (size / (size - 2)), None
  own = c.local_theta or (0 if found['rope'] else found['theta'])
  found['local_theta'] = own if turns and local else 0
  return found
