"""Flags of every command: one-line mistakes, exit codes, and --help within a second.

Exit codes: 0 done; 1 failure; 2 the user's mistake; 75 stopped through no fault of the
config, run the same command again; 130 Ctrl-C. Imports nothing heavy.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from gptjax import signals
from gptjax.lookup import flatten, nearest
from gptjax.mistakes import Failure, Leave, Mistake

if TYPE_CHECKING:  # What takes its time to import waits until signals are caught.
  import absl.flags
  import ml_collections

SHIPPED = pathlib.Path(__file__).resolve().parent.parent / 'experiments'


class Flag(NamedTuple):
  """A flag: its type is that of the default; `choices` and `low`, `high` bound it."""

  default: Any
  help: str
  choices: tuple[str, ...] | None = None
  low: float | None = None
  high: float | None = None
  many: bool = False  # May be given several times: a list.


_SMALLER = {
  True: 'lower c.batch_size, c.mixture.length or c.model, raise c.microbatches, or '
  "take c.model.remat='full'",
  False: 'take fewer or shorter texts at a time, or a smaller model',
}
RUN = Flag('', 'A run folder, a folder of Hugging Face weights (hf:X), or smollm2.')
STEP = Flag('', 'Which checkpoint: latest, best or a number [best if kept].')
DATA = Flag('', 'Folder of data sets [c.data, then the variable GPTJAX_DATA].')


def command(
  doc: str | None,
  main: Callable[..., None],
  options: Mapping[str, Flag],
  *,
  config: bool = False,
  argv: list[str] | None = None,
) -> None:
  """Parses the command line, calls `main(values)` and exits with its code.

  Args:
    doc: the command's docstring, printed by --help.
    main: gets a namespace with one attribute per flag; with `config`, also `config` (a
      locked ConfigDict), `overrides` (dotted keys) and `config_file`.
    options: the flags by name.
    config: whether --config=FILE[:arg=value,...] and --config.key=value are taken.
    argv: the command line, instead of that of the process and its signals.
  """
  if argv is None:
    signals.at_once()
    sys.unraisablehook = _show_unraisable
    argv = sys.argv
  try:
    if any(a in ('--help', '-h', '-help', '--helpfull') for a in argv[1:]):
      print(_help(doc or '', options, config))
      code = 0
    else:
      code = main(parse(argv, options, config=config)) or 0
  except Mistake as e:
    code = _complain(e, 2)
  except Failure as e:
    code = _complain(e, 1)
  except Leave as e:
    code = _complain(e, 75)
  except KeyboardInterrupt:
    code = _complain('interrupted', 130)
  except BrokenPipeError:  # The reader of our output went away, as `head` does.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = 0
  except Exception as e:
    from gptjax import capacity

    line = capacity.explain(e)
    if line is None:
      raise
    code = _complain(f'{line}: {_SMALLER[config]}.', 1)
  sys.stdout.flush()
  sys.exit(code)


def _complain(what: object, code: int) -> int:
  print(f'gptjax: {" ".join(str(what).split())}', file=sys.stderr)
  return code


def _show_unraisable(error: Any) -> None:
  """As Python does, but for what threads say of a save that has failed already."""
  if str(error.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(error)


def parse(
  argv: list[str], options: Mapping[str, Flag], *, config: bool = False
) -> types.SimpleNamespace:
  """The values of the flags, checked.

  Raises:
    Mistake: an unknown flag or config key, a wrong value, or a stray argument.
  """
  import absl.flags
  from ml_collections import config_flags

  values = absl.flags.FlagValues()
  for name, flag in options.items():
    _define(values, name, flag)
  argv = list(argv)
  if config:
    argv = _resolve(argv)
    config_flags.DEFINE_config_file('config', None, 'c', flag_values=values)
  true_argv, sys.argv = sys.argv, argv  # Where config_flags looks for --config.KEY.
  try:
    rest = values(argv)[1:]
  except absl.flags.UnrecognizedFlagError as e:
    allowed = [*options, 'config'] if config else list(options)
    line = nearest(e.flagname, allowed)
    raise Mistake(f'unknown flag --{e.flagname}: {line}') from None
  except absl.flags.Error as e:
    raise Mistake(_allowed(str(e))) from None
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise Mistake(f'--config: {e}') from None
  finally:
    sys.argv = true_argv
  if rest:
    raise Mistake(
      f'stray argument {rest[0]!r}: every argument is --name=value'
      + (f'; --config.{rest[0]}?' if config and '=' in rest[0] else '.')
    )
  found = types.SimpleNamespace(**{name: values[name].value for name in options})
  for name, flag in options.items():
    _check(name, getattr(found, name), flag)
  if config:
    if not values['config'].present:
      raise Mistake(f'--config=FILE is needed. Shipped: {", ".join(shipped())}.')
    found.config = values.config
    found.overrides = dict(config_flags.get_override_values(values['config']))
    found.config_file = config_flags.get_config_filename(values['config'])
    _refuse_names(found.overrides)
  return found


def _allowed(line: str) -> str:
  """absl's line on a value that is of another type, with the type by name."""
  for said, kind in (
    ('invalid literal for int', 'a whole number'),
    ('could not convert string to float', 'a number'),
    ('Non-boolean argument', 'true or false'),
  ):
    flag, found, _ = line.partition(said)
    if found:
      flag = flag.rstrip("( :'")
      return f'{flag}: {kind} is allowed.'
  return line


def _define(values: absl.flags.FlagValues, name: str, flag: Flag) -> None:
  import absl.flags

  kind = type(flag.default)
  if flag.many:
    absl.flags.DEFINE_multi_string(name, flag.default, flag.help, flag_values=values)
  elif kind is bool:
    absl.flags.DEFINE_bool(name, flag.default, flag.help, flag_values=values)
  elif kind is int:
    absl.flags.DEFINE_integer(name, flag.default, flag.help, flag_values=values)
  elif kind is float:
    absl.flags.DEFINE_float(name, flag.default, flag.help, flag_values=values)
  else:
    absl.flags.DEFINE_string(name, flag.default, flag.help, flag_values=values)


def _check(name: str, value: Any, flag: Flag) -> None:
  if flag.choices and value not in flag.choices:
    raise Mistake(f'--{name}={value}: {nearest(str(value), flag.choices)}')
  low, high = flag.low, flag.high
  if value is None or isinstance(value, str | bool | list):
    return
  if value != value or (low is not None and value < low):
    raise Mistake(f'--{name}={value}: at least {low} is allowed.')
  if high is not None and value > high:
    raise Mistake(f'--{name}={value}: at most {high} is allowed.')


def _refuse_names(overrides: Mapping[str, Any]) -> None:
  for key, value in overrides.items():
    if key == 'name' or key.endswith('.name'):
      room = key.removesuffix('.name')
      raise Mistake(
        f'--config.{key}={value}: another name takes other keys. Write it in the '
        f'experiment instead: c.{room} = dict(name={value!r}, ...)'
      )


def shipped() -> list[str]:
  """Names of the experiments that come with gptjax."""
  files = sorted(SHIPPED.glob('*.py'))
  return [p.stem for p in files if p.stem not in ('__init__', 'common')]


def find_config(name: str) -> pathlib.Path:
  """The file of --config=NAME: a path, or an experiment that comes with gptjax.

  Raises:
    Mistake: there is no such file.
  """
  path = pathlib.Path(name)
  for candidate in (path, SHIPPED / path.name, SHIPPED / f'{path.name}.py'):
    if candidate.is_file() and candidate.suffix == '.py':
      return candidate
  raise Mistake(f'--config={name}: no such file. {nearest(path.stem, shipped())}')


def _resolve(argv: list[str]) -> list[str]:
  """argv with the config's path found, and its keys checked against the file."""
  out, config = [], None
  pending = False
  for arg in argv:
    name, _, value = arg.partition('=')
    if pending or (name in ('--config', '-config') and '=' in arg):
      file, _, extra = (arg if pending else value).partition(':')
      path = find_config(file)
      config = load_config(path, extra if ':' in (arg if pending else value) else None)
      spec = f'{path}:{extra}' if extra else str(path)
      out.insert(1, f'--config={spec}')  # Before its keys, wherever it was said.
      pending = False
    elif name in ('--config', '-config'):
      pending = True
    else:
      out.append(arg)
  if pending:
    raise Mistake('--config needs a value: --config=FILE.')
  keys = [m for m in map(re.compile(r'--?(?:no)?config\.([^=]+)').match, out) if m]
  if keys and config is None:
    raise Mistake(f'{keys[0].group(0)} without --config=FILE.')
  if config is not None:
    for match in keys:
      _check_key(match.group(1), config)
  return out


def _check_key(key: str, config: ml_collections.ConfigDict) -> None:
  """One that the config declares; '[i]' indexes a tuple."""
  import ml_collections

  plain = re.sub(r'\[\d+\]', '', key)
  node: Any = config
  for part in plain.split('.'):
    if not isinstance(node, ml_collections.ConfigDict) or part not in node:
      known = [k for k, _ in flatten(config.to_dict())]
      raise Mistake(f'--config.{key}: no such key. {_near_key(plain, known)}')
    node = node[part]


def _near_key(key: str, known: list[str]) -> str:
  line = nearest(key, known)
  if line.startswith('did you mean') and len(line) > 400:
    return line.partition(' Allowed')[0]
  return line


def load_config(path: pathlib.Path, arg: str | None) -> ml_collections.ConfigDict:
  """Runs the file's get_config, with `experiments.common` importable from anywhere.

  Raises:
    Mistake: the file does not run, or has no get_config; names file and line.
  """
  import importlib.util

  import ml_collections

  _offer_experiments()
  spec = importlib.util.spec_from_file_location('gptjax_config', path)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    if not hasattr(module, 'get_config'):
      raise Mistake(f'{path}: it has no function get_config(arg).')
    config = module.get_config() if arg is None else module.get_config(arg)
  except Mistake:
    raise
  except (Exception, SystemExit) as e:
    line = _line_of(e, path)
    raise Mistake(f'{path}{line}: {type(e).__name__}: {e}') from None
  if not isinstance(config, ml_collections.ConfigDict):
    kind = type(config).__name__
    raise Mistake(f'{path}: get_config returns no ConfigDict, but a {kind}.')
  return config


def _line_of(error: BaseException, path: pathlib.Path) -> str:
  import traceback

  if isinstance(error, SyntaxError):
    return f':{error.lineno}' if error.lineno else ''
  frames = traceback.extract_tb(error.__traceback__)
  lines = [f.lineno for f in frames if pathlib.Path(f.filename) == path.absolute()]
  return f':{lines[-1]}' if lines else ''


def _offer_experiments() -> None:
  """Makes `from experiments import common` mean ours, wherever the config lies."""
  if 'experiments' not in sys.modules:
    package = types.ModuleType('experiments')
    package.__path__ = [str(SHIPPED)]
    sys.modules['experiments'] = package


def _help(doc: str, options: Mapping[str, Flag], config: bool) -> str:
  lines = [doc.strip(), '', 'Flags:']
  if config:
    lines += ['  --config=FILE[:arg=value,...]', '      The experiment; shipped: ']
    lines[-1] += ', '.join(shipped()) + '.'
    lines += [
      '  --config.KEY=VALUE',
      '      Changes a key of it: --config.optim.lr=3e-4.',
    ]
  for name, flag in options.items():
    shown = '' if flag.default in ('', None, [], False) else f' [{flag.default}]'
    lines += [f'  --{name}', f'      {flag.help}{shown}']
  return '\n'.join(lines)


def huge_pages() -> None:
  """Starts this process anew with huge pages for malloc, where that helps.

  A train step's temporaries are allocated afresh each step; on Linux with 4 kB pages
  their faults cost up to a fifth of it. glibc 2.35 and later read the setting before
  the program starts, so it cannot be changed from within.
  """
  import ast
  import platform

  tunable = 'glibc.malloc.hugetlb=1'
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  if sys.platform != 'linux' or 'hugetlb' in tunables or not sys.orig_argv:
    return
  name, version = platform.libc_ver()
  if name != 'glibc' or ast.literal_eval(f'({version.replace(".", ",")},)') < (2, 35):
    return
  try:
    with open('/sys/kernel/mm/transparent_hugepage/enabled') as f:
      if '[never]' in f.read():
        return
  except OSError:
    return
  os.environ['GLIBC_TUNABLES'] = f'{tunables}:{tunable}'.lstrip(':')
  sys.stdout.flush()
  signals.hold()
  try:
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
  except OSError:  # Without huge pages, then.
    signals.at_once()
