"""Every experiment loads, and takes two steps at a size for a test."""

import pathlib

import pytest

from gptjax import flags, train

FOLDER = pathlib.Path(flags.SHIPPED)
NAMES = flags.shipped()
SMALL = {  # Argument, and what is changed, so that two steps take seconds.
  'small': ('quick', dict(steps=2)),
  'shakespeare_char': ('fast', dict(steps=2)),
  'gpt2': ('tiny', dict()),
  'translate': ('quick', dict(steps=2)),
  'chat': ('quick,init={base}', dict(steps=2)),
  'sft': ('quick,init={base}', dict(steps=2)),
  'classify': ('quick,init={base}', dict(steps=2)),
}


def test_every_experiment_is_tried():
  assert sorted(SMALL) == NAMES


@pytest.mark.parametrize('name', NAMES)
def test_it_says_its_command_and_loads_without_jax(name):
  path = FOLDER / f'{name}.py'
  assert f'--config=experiments/{name}.py' in path.read_text()
  config = flags.load_config(path, None)
  assert config.steps > 100
  assert 'tensorflow' not in path.read_text()


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A model of small.py after a step: what is fine-tuned."""
  config = flags.load_config(FOLDER / 'small.py', 'quick')
  config.steps, config.evals.val.limit = 1, 100
  config.model.update(layers=2, embed=32, heads=2, kv_heads=2, mlp=64)
  config.tokenizer.vocab = 512
  folder = tmp_path_factory.mktemp('runs') / 'base'
  train.train(config, str(folder), say=lambda line: None)
  return folder


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_it_takes_two_steps(name, tmp_path, shared, request):
  arg, changes = SMALL[name]
  if '{base}' in arg:
    arg = arg.format(base=request.getfixturevalue('base'))
  config = flags.load_config(FOLDER / f'{name}.py', arg)
  with config.unlocked():
    config.update(changes)
    config.model.layers = min(config.model.get('layers') or 2, 2)
  config.batch_size = 8
  config.samples.every = 0
  config.data = str(shared)
  config.mesh = dict(data=-1, fsdp=1, tensor=1)
  said = []
  result = train.train(config, str(tmp_path / 'run'), say=said.append)
  assert result['step'] == 2
  kind = 'f1' if name == 'classify' else 'bits_per_byte'
  found = [value for key, value in result.items() if key.endswith(kind)]
  assert found
  assert all(0 <= value < 20 for value in found)
