"""A name in a config is a module: `dict(name='dpo', beta=0.1)` in the room
`objectives` means function `dpo(beta=0.1)` of gptjax/objectives/dpo.py.
"""

import difflib
import importlib
import inspect
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from gptjax.mistakes import Mistake


def nearest(word: str, allowed: Iterable[str]) -> str:
  """The end of a mistake's line: the nearest right name, then all that are allowed."""
  allowed = sorted(allowed)
  close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
  hint = f'did you mean {close[0]!r}? ' if close else ''
  return f'{hint}Allowed: {", ".join(allowed)}.'


def names(room: str) -> list[str]:
  """The modules of a room, such as 'objectives': its catalogue."""
  folder = pathlib.Path(__file__).parent / room
  return sorted(p.stem for p in folder.glob('*.py') if not p.stem.startswith('_'))


def find(room: str, name: str) -> Callable[..., Any]:
  """Function `name` of gptjax/room/name.py.

  Raises:
    Mistake: no module of the room bears the name, or it has no such function.
  """
  known = names(room)
  if name not in known:
    raise Mistake(f'{room} has no {name!r}: {nearest(str(name), known)}')
  module = importlib.import_module(f'gptjax.{room}.{name}')
  if not callable(getattr(module, name, None)):
    raise Mistake(f'{room}/{name}.py is no choice: {nearest(name, choices(room))}')
  return getattr(module, name)


def choices(room: str) -> list[str]:
  """The names that `find` knows: modules of a room with a function of their name."""

  def is_one(name: str) -> bool:
    module = importlib.import_module(f'gptjax.{room}.{name}')
    return callable(getattr(module, name, None))

  return [name for name in names(room) if is_one(name)]


def make(room: str, config: Mapping[str, Any], where: str = '', **given: Any) -> Any:
  """Calls what `config['name']` names, with the config's other keys as arguments.

  Arguments in `given` (what the caller has and the config cannot say) come on top;
  those that the function does not take are left out. One that takes `where` is told it.

  Raises:
    Mistake: an unknown name, an argument that the function does not take, or one
      that it needs and nobody gives; and what the function raises, which names the
      place too. `where` is the config key, such as 'c.optim'.
  """
  config = dict(config)
  name = config.pop('name', None)
  if name is None:
    raise Mistake(f'{where or room} has no key name. {nearest("", names(room))}')
  function = find(room, name)
  parameters = inspect.signature(function).parameters
  free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  config = {k: v for k, v in config.items() if v is not None or k in parameters}
  given = {k: v for k, v in given.items() if free or k in parameters}
  given |= {'where': where} if 'where' in parameters else {}
  mine = [k for k in parameters if k not in given]
  for key in config:
    if key not in parameters and not free:
      raise Mistake(f'{where or room}: {name} takes no {key!r}: {nearest(key, mine)}')
  missing = [
    k
    for k, p in parameters.items()
    if p.default is p.empty
    and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    and k not in config
    and k not in given
  ]
  if missing:
    raise Mistake(f'{where or room}: {name} needs {", ".join(missing)}.')
  try:
    return function(**{**config, **given})
  except Mistake as mistake:
    if where in str(mistake):
      raise
    raise Mistake(f'{where}: {mistake}') from None


def flatten(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Leaves of nested mappings by dotted key, for configs: ('optim.lr', 3e-4)."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value
