"""The house stands: imports point down, files and functions stay readable."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'gptjax'
FILES = sorted(PACKAGE.rglob('*.py'))

FLOORS = [
  ['words', 'mistakes', 'lookup', 'tree', 'files', 'manifest', 'steps', 'signals'],
  [
    'config', 'sharding', 'capacity', 'optim', 'metrics', 'progress', 'checkpoint',
    'folder', 'tokenizers', 'sources',
  ],
  ['models', 'tasks'],
  ['data', 'generate', 'objectives', 'interop', 'safety', 'step', 'trained'],
  ['origin'],
  [
    'run', 'samples', 'screen', 'export', 'rollouts', 'evals', 'interpret', 'planning',
  ],
  ['start'],
  ['train', 'evaluation', 'serve', 'report', 'view'],
  ['flags', 'main', 'chat', 'convert', 'evaluate', 'plan'],
]  # fmt: skip
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Where each of the big libraries may be imported.
HOMES = {
  'flax': ('models/',),
  'optax': ('optim/',),
  'orbax': ('checkpoint.py',),
  'grain': ('data/',),
}


def room_of(path: pathlib.Path) -> str:
  first = path.relative_to(PACKAGE).parts[0]
  return first.removesuffix('.py')


def floor_of(path: pathlib.Path) -> int:
  if path.name == '__main__.py' or (
    path.parent == PACKAGE and "__name__ == '__main__'" in path.read_text()
  ):
    return len(FLOORS) - 1
  return FLOOR[room_of(path)]


def imports(path: pathlib.Path) -> list[str]:
  found = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      found += [f'{node.module}.{alias.name}' for alias in node.names]
  return found


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
  if path.name == '__init__.py':
    assert not path.read_text().strip(), 'an __init__.py is empty'
    return
  for name in imports(path):
    parts = name.split('.')
    if parts[0] == 'gptjax':
      assert len(parts) > 1
      if parts[1] == room_of(path):
        continue
      target = FLOOR[parts[1]]
      below = floor_of(path) > target
      same = floor_of(path) == target and parts[1] in ('flags', *FLOORS[0])
      assert below or same, f'{path.name} imports {name}'
    for library, homes in HOMES.items():
      if parts[0] == library:
        here = str(path.relative_to(PACKAGE))
        assert here.startswith(homes), f'{here} imports {library}'
    assert parts[0] not in ('tensorflow', 'clu', 'torch', 'transformers')


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_readable(path):
  text = path.read_text()
  assert text.count('\n') <= 400
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      assert node.end_lineno - node.lineno < 120, node.name
  if text.strip():
    assert ast.get_docstring(ast.parse(text)), 'a module says what it is'


@pytest.mark.parametrize(
  'path', sorted((ROOT / 'experiments').glob('*.py')), ids=lambda p: p.name
)
def test_experiments_import_no_more_than_they_need(path):
  for name in imports(path):
    assert name.split('.')[0] in ('ml_collections', 'experiments', 'difflib'), name


def test_nothing_is_unfinished():
  for path in FILES:
    for word in ('TO' + 'DO', 'FIX' + 'ME', 'XX' + 'X', 'NotImplemented' + 'Error'):
      assert word not in path.read_text(), path
