"""What every config says, whatever it trains."""

from collections.abc import Mapping
from typing import Any

from gptjax.words import Mistake

# Beside what its `name`s take; experiments/common.py has most.
_INTS = (
  *('seed', 'steps', 'batch_size', 'microbatches'),
  *('log_every', 'save_every', 'keep', 'max_bad_steps'),
)
_DICTS = (
  *('tokenizer', 'model', 'objective', 'optim', 'mesh', 'rules', 'evals'),
  'lora',
)
KEYS: dict[str, Any] = {
  **dict.fromkeys(_INTS, int),
  **{key: {} for key in _DICTS},
  'mixture': {'length': int, 'tasks': {}},
  'keep_best': {'metric': str, 'mode': str, 'n': int},
  'early_stop': {'metric': str, 'mode': str, 'patience': int},
  'samples': {'prompts': tuple, 'max_tokens': int, 'temperature': float, 'every': int},
  'profile': {'start': int, 'steps': int},
  'freeze': tuple,
  'track': str,
  'compile_cache': bool,
  **dict.fromkeys(('data', 'resume', 'init'), object),  # A text, or None.
}


def check_config(
  config: Mapping[str, Any], keys: Mapping[str, Any] = KEYS, where: str = 'c'
) -> None:
  """Raises Mistake for a config that lacks one of the keys, or its type."""
  for key, kind in keys.items():
    name, deep = f'{where}.{key}', isinstance(kind, dict)
    if key not in config:
      raise Mistake(f'{name} is missing: see config() of experiments/common.py.')
    value = config[key]
    if not isinstance(value, Mapping if deep else kind):
      wanted = 'dict' if deep else kind.__name__
      raise Mistake(f'{name}={value!r}: a {wanted} is wanted.')
    if deep:
      check_config(value, kind, name)
  for key, value in config.items():
    if key in ('tasks', 'evals'):
      check_config(value, {name: {} for name in value}, f'{where}.{key}')
