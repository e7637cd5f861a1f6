"""Parts of a config.json: keys that belong together, and what they say of a model.

Each part reads its keys into settings of ours and writes them from settings, so that a
family is one list of parts in both directions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gptjax.lookup import nearest
from gptjax.models.settings import Settings
from gptjax.words import Mistake

Config = Mapping[str, Any]
Told = dict[str, Any]
_MOST = 10_000  # Layers.

ACTIVATIONS = {
  'silu': 'silu',
  'swish': 'silu',
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'relu': 'relu',
  'relu2': 'relu2',
}


def among(value: Any, allowed: Iterable[str], key: str) -> str:
  """The value, if it is one of the names.

  Raises:
    Mistake: it is not.
  """
  if not isinstance(value, str) or value not in allowed:
    raise Mistake(f'{key}={value!r}: {nearest(str(value), allowed)}')
  return value


class Part(NamedTuple):
  """Keys, and the two directions."""

  keys: tuple[str, ...]
  read: Callable[[Config], Told]  # Raises Mistake for what cannot be said here.
  write: Callable[[Settings], Told]


def get(config: Config, key: str, default: Any) -> Any:
  """The value of a key; the default, which says its type, where it is absent or null.

  Raises:
    Mistake: a value of another type.
  """
  value = config.get(key)
  if value is None:
    return default
  kind = float if isinstance(default, float) else type(default)
  allowed = (int, float) if kind is float else kind
  wrong = not isinstance(value, allowed)
  if wrong or (isinstance(value, bool) and kind is not bool):
    raise Mistake(f'{key}={value!r}: of type {kind.__name__}.')
  return kind(value)


def same(theirs: str, ours: str, default: Any, null: Any = None) -> Part:
  """A key that is a setting of ours under another name; `null`: what null means."""

  def read(config: Config) -> Told:
    empty = null is not None and theirs in config and config[theirs] is None
    return {ours: null if empty else get(config, theirs, default)}

  return Part((theirs,), read, lambda c: {theirs: getattr(c, ours)})


def depth(theirs: str, default: int) -> Part:
  """The number of layers."""
  return Part(
    (theirs,),
    lambda config: {'layers': layers_of(config, theirs, default)},
    lambda c: {theirs: c.layers},
  )


def layers_of(config: Config, key: str, default: int) -> int:
  """How many layers a key says, which is not more than any model has.

  Raises:
    Mistake: it is no such number.
  """
  found = get(config, key, default)
  if not 1 <= found <= _MOST:
    raise Mistake(f'{key}={found}: from 1 to {_MOST:,}.')
  return found


def only(key: str, value: Any) -> Part:
  """A key that has one value here, which is also its default."""

  def read(config: Config) -> Told:
    found = config.get(key)
    if found is not None and (type(found) is not type(value) or found != value):
      raise Mistake(f'{key}={found!r}: {value!r} is all that can be read.')
    return {}

  return Part((key,), read, lambda c: {})


def activation(key: str, default: str, written: Mapping[str, str]) -> Part:
  """The activation of the MLP; `written` are names that differ from ours."""

  def read(config: Config) -> Told:
    name = among(get(config, key, default), ACTIVATIONS, key)
    return {'activation': ACTIVATIONS[name]}

  return Part((key,), read, lambda c: {key: written.get(c.activation, c.activation)})


def attention_bias(c: Settings) -> Told:
  """One key for all four products: of two that differ, the family is another."""
  return {'attention_bias': c.qkv_bias and c.out_bias}


BIAS = Part(
  ('attention_bias',),
  lambda config: dict.fromkeys(
    ('qkv_bias', 'out_bias'), get(config, 'attention_bias', False)
  ),
  attention_bias,
)


def softcap(key: str, ours: str, default: float | None) -> Part:
  """A cap of scores or logits; null is none."""

  def read(config: Config) -> Told:
    given = config.get(key, default)
    return {ours: 0.0 if given is None else get(config, key, default or 0.0)}

  return Part((key,), read, lambda c: {key: getattr(c, ours) or None})


def unscaled(key: str) -> Part:
  """Whether scores are divided by the root of the head's size (GPT-2)."""
  return Part(
    (key,),
    lambda config: {'attention_scale': 0.0 if get(config, key, True) else 1.0},
    lambda c: {key: c.attention_scale != 1.0},
  )


def _write_scalar(c: Settings) -> Told:
  scalar = c.scale**-2
  near = round(scalar)
  whole = abs(near**-0.5 - c.scale) < 1e-12 if near > 0 else False
  return {'query_pre_attn_scalar': near if whole else scalar}


def _read_scalar(config: Config) -> Told:
  scalar = get(config, 'query_pre_attn_scalar', 256.0)
  if scalar <= 0:
    raise Mistake(f'query_pre_attn_scalar={scalar}: above 0.')
  return {'attention_scale': scalar**-0.5}


SCALAR = Part(('query_pre_attn_scalar',), _read_scalar, _write_scalar)


# Kinds of layers.

KINDS = {'full_attention': 'global', 'sliding_attention': 'local'}
_THEIRS = {ours: theirs for theirs, ours in KINDS.items()}


def kinds(c: Settings) -> list[str]:
  """The kind of every layer."""
  return [c.pattern[i % len(c.pattern)] for i in range(c.layers)]


def layered(kinds: Sequence[str], window: int) -> Told:
  """The shortest pattern that gives these kinds, and the window if one is local."""
  step = next(
    n
    for n in range(1, len(kinds) + 1)
    if all(kind == kinds[i % n] for i, kind in enumerate(kinds))
  )
  return {'pattern': tuple(kinds[:step]), 'window': window if 'local' in kinds else 0}


def _types(config: Config, layers: int, usual: Callable[[int], str]) -> list[str]:
  """Of each layer its kind: `layer_types`, or what is usual for its number."""
  given = config.get('layer_types')
  if given is None:
    return [usual(i) for i in range(layers)]
  if not isinstance(given, list) or len(given) != layers:
    raise Mistake(f'layer_types has not one entry for each of {layers} layers.')
  return [KINDS[among(kind, KINDS, 'layer_types')] for kind in given]


def _window(config: Config, default: int | None) -> int | None:
  """Tokens of the window; null is none."""
  given = config.get('sliding_window', default)
  return None if given is None else get(config, 'sliding_window', default or 0)


def always_sliding(layers: int, window: int) -> Part:
  """A window in all layers, or in none (Mistral); defaults of both."""

  def read(config: Config) -> Told:
    found = _window(config, window)
    number = layers_of(config, 'num_hidden_layers', layers)
    kind = 'global' if found is None else 'local'
    return layered(_types(config, number, lambda i: kind), found or 0)

  def write(c: Settings) -> Told:
    return {'sliding_window': c.window if set(kinds(c)) == {'local'} else None}

  return Part(('sliding_window', 'layer_types'), read, write)


def late_sliding(layers: int, first: int) -> Part:
  """A window, if it is used at all, from a layer on (Qwen); defaults."""

  def read(config: Config) -> Told:
    used = get(config, 'use_sliding_window', False)
    window = _window(config, 4096) if used else None
    start = get(config, 'max_window_layers', first)

    def usual(i: int) -> str:
      return 'local' if window is not None and i >= start else 'global'

    number = layers_of(config, 'num_hidden_layers', layers)
    found = _types(config, number, usual)
    if 'local' in found and window is None:
      raise Mistake('layer_types has sliding_attention, use_sliding_window is false.')
    return layered(found, window or 0)

  def write(c: Settings) -> Told:
    each = kinds(c)
    if 'local' not in each:
      return {'use_sliding_window': False, 'sliding_window': None}
    late = {'use_sliding_window': True, 'sliding_window': c.window}
    types = [_THEIRS[kind] for kind in each]
    return {**late, 'max_window_layers': each.index('local'), 'layer_types': types}

  keys = ('use_sliding_window', 'sliding_window', 'max_window_layers', 'layer_types')
  return Part(keys, read, write)


def every_nth_global(layers: int, every: int) -> Part:
  """Of so many layers the last sees all, the others a window (Gemma); defaults."""

  def read(config: Config) -> Told:
    n = layers_of(config, 'sliding_window_pattern', every)
    window = _window(config, 4096)
    number = layers_of(config, 'num_hidden_layers', layers)
    found = _types(config, number, lambda i: 'local' if (i + 1) % n else 'global')
    if window is None and 'local' in found:
      raise Mistake('sliding_window is null, but layers are sliding.')
    return layered(found, window or 0)

  def write(c: Settings) -> Told:
    types = [_THEIRS[kind] for kind in kinds(c)]
    return {'sliding_window': c.window or 4096, 'layer_types': types}

  return Part(
    (
      'sliding_window',
      'sliding_window_pattern',
      '_sliding_window_pattern',
      'layer_types',
    ),
    read,
    write,
  )


# GPT-Neo: [[['global', 'local'], 6]], or one name for each layer.


def _read_neo(config: Config) -> Told:
  types: Any = config.get('attention_types') or [[['global', 'local'], 12]]
  try:
    each = [kind for pattern, repeats in types for kind in list(pattern) * repeats]
  except (TypeError, ValueError, OverflowError, MemoryError):
    raise Mistake(
      f'attention_types={types!r}: [[[kind, ...], repeats], ...].'
    ) from None
  for kind in each:
    among(kind, _THEIRS, 'attention_types')
  layers = layers_of(config, 'num_layers', 24)
  if config.get('attention_layers', each) != each or len(each) != layers:
    raise Mistake(f'attention_types does not give the kinds of {layers} layers.')
  return layered(each, get(config, 'window_size', 256))


def _write_neo(c: Settings) -> Told:
  repeats, rest = divmod(c.layers, len(c.pattern))
  types = [[list(c.pattern), repeats]] if repeats else []
  types += [[list(c.pattern[:rest]), 1]] if rest else []
  return {'attention_types': types, 'window_size': c.window or 256}


NEO_KINDS = Part(
  ('attention_types', 'attention_layers', 'window_size'), _read_neo, _write_neo
)
