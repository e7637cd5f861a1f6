import subprocess
import sys
import time

import pytest

from gptjax import flags
from gptjax.mistakes import Failure, Leave, Mistake

OPTIONS = {
  'workdir': flags.Flag('', 'folder'),
  'top_p': flags.Flag(1.0, 'share', low=0.0, high=1.0),
  'n': flags.Flag(1, 'samples', low=1),
  'stop': flags.Flag([], 'stop strings', many=True),
}
CONFIG = """
import ml_collections
from ml_collections import config_dict
from experiments import common

def get_config(arg=''):
  a = common.parse(arg, text='', quick=False, layers=2)
  c = ml_collections.ConfigDict()
  c.steps = 10
  c.text = a.text
  c.quick = a.quick
  c.layers = a.layers
  c.shape = (1, 2)
  c.optim = dict(name='muon', lr=2e-3)
  c.init = config_dict.placeholder(str)
  return c
"""


@pytest.fixture
def config(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(CONFIG)
  return path


def parse(*args, config=False):
  return flags.parse(['main', *args], OPTIONS, config=config)


def test_values_and_defaults():
  values = parse('--workdir=a b', '--n=3', '--stop=x', '--stop=,y')
  assert values.workdir == 'a b'
  assert values.n == 3
  assert values.stop == ['x', ',y']
  assert values.top_p == 1.0


def test_config_overrides_are_typed(config):
  values = parse(
    f'--config={config}:text=a,b.txt,quick,layers=3',
    '--config.optim.lr=1',
    '--config.init=runs/a',
    '--config.shape=(3,4)',
    config=True,
  )
  assert values.config.optim.lr == 1.0
  assert isinstance(values.config.optim.lr, float)
  assert values.config.init == 'runs/a'
  assert values.config.text == 'a,b.txt'
  assert values.config.quick is True
  assert values.config.layers == 3
  assert values.config.shape == (3, 4)
  assert values.overrides == {'optim.lr': 1.0, 'init': 'runs/a', 'shape': (3, 4)}


MISTAKES = [
  (['--wrkdir=3'], "'workdir'"),
  (['lr=3'], 'stray argument'),
  (['--n=x'], '--n=x'),
  (['--n=0'], 'at least 1'),
  (['--top_p=1.5'], 'at most 1'),
  (['--top_p=nan'], '--top_p=nan'),
]


@pytest.mark.parametrize(('args', 'says'), MISTAKES, ids=lambda x: str(x)[:20])
def test_mistakes(args, says):
  with pytest.raises(Mistake, match=says):
    parse(*args)


CONFIG_MISTAKES = [
  ('', ['--config.optm.lr=3'], r"config.optm.lr.*'optim.lr'"),
  ('', ['--config.steps.x=3'], 'no such key'),
  ('', ['--config.steps=1e3'], 'steps=1e3'),
  ('', ['--config.steps=-'], 'steps=-'),
  ('', ['--config.optim=3'], 'optim=3'),
  ('', ['--config.optim.name=lion'], r"c.optim = dict\(name='lion'"),
  ('', ['--config.nothing=1'], 'no such key'),
  (':quik', [], "mine.py:7.*'quick'"),
  (':layers=x', [], 'layers=x'),
]


@pytest.mark.parametrize(('arg', 'args', 'says'), CONFIG_MISTAKES)
def test_config_mistakes(config, arg, args, says):
  with pytest.raises(Mistake, match=says):
    parse(f'--config={config}{arg}', *args, config=True)


def test_config_files_that_do_not_run(tmp_path):
  bad = tmp_path / 'bad.py'
  for text, says in [
    ('def get_config(:\n', 'bad.py:1: SyntaxError'),
    ('\n\nimport no_such_module\n', 'bad.py:3: ModuleNotFoundError'),
    ('x = 1\n', 'get_config'),
    ('def get_config():\n  return 3\n', 'no ConfigDict'),
    ('def get_config():\n  return 1 / 0\n', 'bad.py:2: ZeroDivisionError'),
  ]:
    bad.write_text(text)
    with pytest.raises(Mistake, match=says):
      parse(f'--config={bad}', config=True)
  with pytest.raises(Mistake, match="'small'"):
    parse('--config=smal', config=True)
  with pytest.raises(Mistake, match='needed'):
    parse(config=True)
  with pytest.raises(Mistake, match='without --config'):
    parse('--config.lr=3', config=True)


@pytest.mark.parametrize(
  ('error', 'code'),
  [(Mistake('a\nb'), 2), (Failure('a b'), 1), (Leave('a b'), 75), (None, 0)],
)
def test_exit_codes(error, code, capsys):
  def main(values):
    if error:
      raise error

  with pytest.raises(SystemExit) as caught:
    flags.command('doc', main, OPTIONS, argv=['main'])
  assert caught.value.code == code
  assert capsys.readouterr().err == ('gptjax: a b\n' if error else '')


def test_help_is_quick_and_imports_no_jax():
  code = (
    'import sys; sys.argv = ["main", "--help"]\n'
    'import runpy\n'
    'try: runpy.run_module("gptjax.main", run_name="__main__")\n'
    'except SystemExit as e: assert not e.code\n'
    'assert "jax" not in sys.modules\n'
  )
  start = time.time()
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert '--config.KEY=VALUE' in done.stdout
  assert time.time() - start < 20  # A hang, not a speed: see the import above.
