"""The wheel: what it holds, and that it works from an empty folder."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[1]
OWN = """
from experiments import common

def get_config(arg=''):
  a = common.parse(arg, text='')
  c = common.config()
  c.steps, c.batch_size, c.log_every = 3, 2, 1
  c.tokenizer = dict(name='bytes')
  task = dict(name='text', path=a.text, document='line', weight=1.0)
  c.mixture = dict(length=16, packing='best_fit', tasks=dict(mine=task))
  sizes = dict(layers=1, embed=16, heads=2, kv_heads=1, mlp=32)
  c.model = dict(name='transformer', preset='llama', **sizes)
  c.optim = dict(name='adamw', lr=1e-3)
  c.evals = dict(val=dict(name='perplexity', split='val', every=3))
  return c
"""


@pytest.fixture(scope='module')
def target(tmp_path_factory):
  """A folder with the wheel installed in it, beside nothing."""
  pytest.importorskip('pip', reason='builds a wheel with pip')
  pytest.importorskip('hatchling', reason='builds a wheel: pip install hatchling')
  made = tmp_path_factory.mktemp('wheel')
  pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
  build = ['wheel', '--no-deps', '--no-build-isolation', f'--wheel-dir={made}', ROOT]
  subprocess.run([*pip, *build], check=True)
  (wheel,) = made.glob('gptjax-*.whl')
  installed = made / 'installed'
  install = ['install', '--no-deps', '--no-index', f'--target={installed}', wheel]
  subprocess.run([*pip, *install], check=True)
  return wheel, installed


@pytest.fixture
def python(target, tmp_path, monkeypatch):
  """Runs `python ARGS` in an empty folder where only the wheel is gptjax."""
  environment = {**os.environ, 'PYTHONPATH': str(target[1]), 'JAX_NUM_CPU_DEVICES': '1'}
  empty = tmp_path / 'empty'
  empty.mkdir()

  def call(*args):
    return subprocess.run(
      [sys.executable, *args],
      cwd=empty,
      env=environment,
      capture_output=True,
      text=True,
      timeout=280,
    )

  return call


def test_it_holds_the_code_and_nothing_else(target):
  names = zipfile.ZipFile(target[0]).namelist()
  assert {'gptjax/py.typed', 'gptjax/train.py', 'experiments/common.py'} <= set(names)
  tops = {name.partition('/')[0] for name in names}
  (info,) = (top for top in tops if top.endswith('.dist-info'))
  assert tops == {'gptjax', 'experiments', info}
  assert any(name.startswith(f'{info}/licenses/') for name in names)
  assert not [name for name in names if 'test' in name or name.endswith('.pyc')]
  folder = (ROOT / 'gptjax').rglob('*')
  ours = {str(p.relative_to(ROOT)) for p in folder if p.suffix == '.py'}
  assert ours <= set(names)


def test_the_installed_one_is_what_runs(target, python):
  found = python('-c', 'import gptjax.flags as f; print(f.__file__); print(f.SHIPPED)')
  file, shipped = found.stdout.split()
  assert pathlib.Path(file).parents[1] == target[1]
  assert pathlib.Path(shipped) == target[1] / 'experiments'


def test_help_names_the_shipped_experiments(python):
  found = python('-m', 'gptjax.main', '--help')
  assert found.returncode == 0
  assert 'small' in found.stdout
  assert 'shakespeare_char' in found.stdout
  assert 'common' not in found.stdout.partition('shipped')[2].splitlines()[0]


def test_a_shipped_experiment_trains_from_an_empty_folder(python, tmp_path):
  found = python('-m', 'gptjax.main', '--config=small:quick', '--config.steps=3')
  assert found.returncode == 0, found.stderr
  run = tmp_path / 'empty' / 'runs' / 'small'
  assert (run / 'checkpoints' / '3' / 'MANIFEST.json').exists()
  assert (run / 'report.html').exists()
  assert [p.name for p in (tmp_path / 'empty').iterdir()] == ['runs']
  said = python('-m', 'gptjax.generate', '--run=runs/small', '--prompt=Hello')
  assert said.returncode == 0, said.stderr


def test_ones_own_config_takes_what_experiments_share(python, tmp_path):
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()
  (elsewhere / 'mine.py').write_text(OWN)
  lines = [f'line {n} speaks of {n * n}' for n in range(2000)]
  (elsewhere / 'mine.txt').write_text('\n'.join(lines))
  config = f'--config={elsewhere}/mine.py:text={elsewhere}/mine.txt'
  found = python('-m', 'gptjax.main', config)
  assert found.returncode == 0, found.stderr
  assert 'val/bits_per_byte' in (
    (tmp_path / 'empty' / 'runs' / 'mine' / 'metrics.jsonl').read_text()
  )


def test_a_mistake_is_one_line(python):
  found = python('-m', 'gptjax.main', '--config=smal')
  assert found.returncode == 2
  assert found.stderr.count('\n') == 1
  assert 'small' in found.stderr
