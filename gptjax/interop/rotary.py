"""How positions turn the heads, as a config.json says it: theta, scaling, both ways.

Older files say rope_theta and rope_scaling, newer ones rope_parameters with all of it.
"""

from collections.abc import Mapping
from typing import Any

from gptjax.interop.parts import KINDS, Config, Part, Told, among, get
from gptjax.models.settings import Settings
from gptjax.words import Mistake

DICTS = ('rope_parameters', 'rope_scaling')
# Options of each kind of scaling: theirs -> ours.
_SCALINGS: dict[str, dict[str, str]] = {
  'linear': {'factor': 'factor'},
  'llama3': {
    'factor': 'factor',
    'original_max_position_embeddings': 'length',
    'low_freq_factor': 'low',
    'high_freq_factor': 'high',
  },
  'yarn': {
    'factor': 'factor',
    'original_max_position_embeddings': 'length',
    'beta_fast': 'fast',
    'beta_slow': 'slow',
    'attention_factor': 'attention',
    'truncate': 'truncate',
  },
}


def read_scaling(given: Mapping[str, Any], key: str, length: int) -> Told | None:
  """Our `rope` of a dict that says rope_type and its options.

  Raises:
    Mistake: a kind or an option that there is not here.
  """
  options = {k: v for k, v in given.items() if v is not None}
  kind = options.pop('type', 'default')
  kind = options.pop('rope_type', kind)
  options.pop('rope_theta', None)
  if options.pop('partial_rotary_factor', 1.0) != 1.0:
    raise Mistake(f'{key}.partial_rotary_factor: 1 is all that can be read.')
  kind = among(kind, ('default', *_SCALINGS), f'{key}.rope_type')
  if kind == 'default':
    options.pop('factor', None)  # It changes nothing.
  known = _SCALINGS.get(kind, {})
  for name in options:
    if name not in known:
      raise Mistake(f'{key}: {kind} with {name}={options[name]!r} cannot be read.')
  if kind == 'default':
    return None
  if 'original_max_position_embeddings' in known:
    options.setdefault('original_max_position_embeddings', length)
  for name in ('factor', 'low_freq_factor', 'high_freq_factor'):
    if name in known and name not in options:
      raise Mistake(f'{key}: {kind} without {name}.')
  return {'kind': kind, **{known[n]: _number(key, n, v) for n, v in options.items()}}


def _number(key: str, name: str, value: Any) -> float:
  flag = name == 'truncate'
  if not isinstance(value, int | float) or isinstance(value, bool) != flag:
    wanted = 'true or false' if flag else 'a number'
    raise Mistake(f'{key}.{name}={value!r}: {wanted}.')
  return value


def write_scaling(c: Settings) -> tuple[float, Told | None]:
  """(theta, their dict) of our scaling; `ntk` is another theta and no more."""
  options = dict(c.rope or {})
  kind = options.pop('kind', 'none')
  if kind == 'none':
    return c.theta, None
  if kind == 'ntk':
    return c.theta * options['factor'] ** (c.head / (c.head - 2)), None
  names = {ours: theirs for theirs, ours in _SCALINGS[kind].items()}
  if kind == 'llama3':
    options = {'low': 1.0, 'high': 4.0, **options}
  return c.theta, {'rope_type': kind, **{names[k]: v for k, v in options.items()}}


def _dict(config: Config, key: str) -> Mapping[str, Any]:
  given = config.get(key) or {}
  if not isinstance(given, Mapping):
    raise Mistake(f'{key}={given!r}: an object.')
  return given


def _whole(config: Config) -> None:
  if get(config, 'partial_rotary_factor', 1.0) != 1.0:
    raise Mistake('partial_rotary_factor: 1 is all that can be read.')


def rotary(length: int) -> Part:
  """Theta, scaling and the trained context; `length` is the family's default."""

  def read(config: Config) -> Told:
    _whole(config)
    context = get(config, 'max_position_embeddings', length)
    told = []
    for key in [k for k in DICTS if config.get(k)] or DICTS[:1]:
      given = _dict(config, key)
      theta = get(given, 'rope_theta', get(config, 'rope_theta', 1e4))
      told.append({'theta': theta, 'rope': read_scaling(given, key, context)})
    if told[0] != told[-1]:
      raise Mistake(f'{" and ".join(DICTS)} say different things.')
    return {'length': context, **told[0]}

  def write(c: Settings) -> Told:
    theta, scaling = write_scaling(c)
    said = {'max_position_embeddings': c.length, 'rope_theta': theta}
    return {**said, 'rope_scaling': scaling}

  keys = ('max_position_embeddings', 'partial_rotary_factor', 'rope_theta', *DICTS)
  return Part(keys, read, write)


def _read_two(config: Config) -> Told:
  _whole(config)
  length = get(config, 'max_position_embeddings', 131072)
  given = _dict(config, 'rope_parameters')
  for name in given:
    among(name, KINDS, 'a part of rope_parameters')
  near = _dict(given, 'sliding_attention')
  far = {**_dict(given, 'full_attention'), **_dict(config, 'rope_scaling')}
  if read_scaling(near, 'rope_parameters.sliding_attention', length):
    raise Mistake('rope_parameters.sliding_attention: scaling there cannot be read.')
  return {
    'length': length,
    'theta': get(far, 'rope_theta', get(config, 'rope_theta', 1e6)),
    'local_theta': get(near, 'rope_theta', get(config, 'rope_local_base_freq', 1e4)),
    'rope': read_scaling(far, 'rope_scaling', length),
  }


def _write_two(c: Settings) -> Told:
  theta, scaling = write_scaling(c)
  return {
    'max_position_embeddings': c.length,
    'rope_theta': theta,
    'rope_local_base_freq': c.local_theta or c.theta,
    'rope_scaling': scaling,
  }


# Gemma 3: local layers turn by a theta of their own, without scaling.
TWO_ROTARIES = Part(
  (
    'max_position_embeddings',
    'partial_rotary_factor',
    'rope_theta',
    'rope_local_base_freq',
    *DICTS,
  ),
  _read_two,
  _write_two,
)
