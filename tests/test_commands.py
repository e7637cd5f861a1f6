"""Mistakes of the commands: one line, the right exit code, nothing lost."""

import json
import pathlib
import subprocess
import sys

import pytest

from gptjax import capacity, convert, flags, main, view
from gptjax.generate import __main__ as generate
from gptjax.report import __main__ as report
from tests import tiny

COMMANDS = {
  'main': main,
  'view': view,
  'generate': generate,
  'report': report,
  'convert': convert,
}


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('corpus'))


@pytest.fixture
def call(corpus, capsys, monkeypatch, tmp_path):
  """call(command, *args) -> (exit code, stdout, stderr), in an empty folder."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(flags, 'huge_pages', lambda: None)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(capacity, 'machine_bytes', lambda: 16 * 10**9)
  config = f'--config={pathlib.Path(tiny.__file__)}:text={corpus},steps=2'

  def run(name, *args):
    module = COMMANDS[name]
    wants = name in ('main', 'view')
    if wants and not any(a.startswith('--config=') for a in args):
      args = (config, *args)
    with pytest.raises(SystemExit) as caught:
      flags.command(
        module.__doc__, module.main, module.OPTIONS, config=wants, argv=[name, *args]
      )
    said = capsys.readouterr()
    return caught.value.code, said.out, said.err

  return run


MISTAKES = [
  (['--config.save_every=-1'], 'c.save_every=-1'),
  (['--config.evals.val.every=-1'], 'c.evals.val.every=-1'),
  (['--config.profile.start=-1'], 'c.profile.start=-1'),
  (['--config.seed=99999999999999999999'], 'c.seed='),
  (['--config.batch_size=0'], 'c.batch_size=0: at least 1'),
  (['--config.batch_size=12', '--config.microbatches=5'], 'c.batch_size=12'),
  (
    ['--config.batch_size=100000000'],
    'cannot fit: 64.0 GB wanted',
  ),
  (['--config.model.embed=1000000'], 'parameters with gradients and optimizer state'),
  (['--config.steps=0'], 'c.steps=0'),
  (['--config.steps=3000000000'], 'c.steps=3000000000: below'),
  (['--config.steps=1e3'], 'steps=1e3: a whole number is allowed'),
  (['--config.objective.smoothing=1'], 'c.objective.smoothing=1.0'),
  (['--config.objective.z_loss=nan'], 'c.objective.z_loss=nan'),
  (['--config.evals.val.split=vl'], "c.mixture.tasks.words: split='vl'"),
  (['--config.optim.lr=nan'], 'c.optim.lr=nan'),
  (['--config.model.heads=3'], 'heads=3'),
  (['--config.mesh.data=3'], 'c.mesh'),
  (['--config.mixture.packing=bestfit'], "'best_fit'"),
  (['--config.mixture.length=4'], "c.samples.prompts: 'the' has 4 tokens"),
  (['--config.mixture.length=65536'], '--config.mixture.length=16384'),
  (['--config.samples.temperature=-1'], 'c.samples: temperature=-1'),
  (['--config.samples.max_tokens=0'], 'c.samples.max_tokens=0'),
  (['--config.samples.prompts=(3,)'], 'c.samples.prompts=(3,)'),
  (['--config.init=nowhere'], 'nowhere is no run folder'),
  (['--config.init=a', '--config.resume=b'], 'c.init takes weights'),
  (['--config.keep_best.metric=train/loss'], 'val/bits_per_byte'),
  (['--config.keep_best.metric=val/bits_per_bite'], "'val/bits_per_byte'?"),
  (['--config.early_stop.metric=val/loss'], 'c.early_stop.metric=val/loss'),
  (
    ['--config.early_stop.metric=val/accuracy', '--config.early_stop.mode=mn'],
    'c.early_stop.mode=mn',
  ),
  (
    ['--config.early_stop.metric=val/accuracy', '--config.early_stop.patience=0'],
    'c.early_stop.patience',
  ),
  (['--config=small:text=nothing/*.txt'], 'nothing/*.txt'),
]


@pytest.mark.parametrize(('args', 'says'), MISTAKES, ids=lambda x: str(x)[:50])
def test_a_mistake_is_one_line_before_anything_is_trained(call, args, says):
  code, out, err = call('main', *args, '--workdir=run')
  assert code == 2
  assert says in err.splitlines()[-1]
  assert err.splitlines()[-1].startswith('gptjax: ')
  assert 'step 1' not in err
  assert not out


@pytest.mark.parametrize(
  ('line', 'says'),
  [
    ('del c["evals"]', 'c.evals is missing'),
    ('del c.samples["every"]', 'c.samples.every is missing'),
    ('c.save_every = 2.5', 'c.save_every=2.5: a int is wanted'),
    ('c.optim = "adamw"', "c.optim='adamw': a dict is wanted"),
    ('c.mixture.tasks.words = "text"', "c.mixture.tasks.words='text': a dict"),
    ('raise SystemExit(3)', 'mine.py:4: SystemExit: 3'),
  ],
)
def test_a_config_that_is_not_as_it_should_be(call, corpus, tmp_path, line, says):
  (tmp_path / 'mine.py').write_text(
    'from tests import tiny\n'
    'def get_config(arg=""):\n'
    f'  c = tiny.get_config("text={corpus}")\n'
    f'  with c.ignore_type(): {line}\n'
    '  return c\n'
  )
  code, _, err = call('main', '--config=mine.py', '--workdir=run')
  assert code == 2
  assert says in err
  assert err.count('\n') == 1


def test_memory_that_runs_out_is_one_line(call, monkeypatch):
  def fail(*args, **kwargs):
    raise MemoryError('Unable to allocate 8.00 PiB for an array')

  monkeypatch.setattr('gptjax.train.train', fail)
  code, _, err = call('main', '--workdir=run')
  assert code == 1
  assert err.startswith(
    'gptjax: out of memory; 8.00 PiB were wanted: lower c.batch_size'
  )
  assert err.count('\n') == 1


def test_after_a_mistake_the_right_command_works_in_the_same_folder(call):
  assert call('main', '--workdir=run', '--config.model.heads=3')[0] == 2
  assert call('main', '--workdir=run')[0] == 0  # A relative path: saves work there.
  assert json.loads(pathlib.Path('run/result.json').read_text())['numbers']
  assert call('main', '--workdir=run', '--config.model.heads=1')[0] == 2
  code, out, _ = call('generate', '--run=run', '--prompt=the', '--max_tokens=3')
  assert code == 0
  assert out


def test_one_small_file_gives_an_error_that_can_be_typed(call, corpus):
  text = pathlib.Path(corpus).read_text()
  pathlib.Path('my.txt').write_text(text)
  small = '--config=small:text=my.txt'
  tiny_model = [
    *('--config.model.layers=1', '--config.model.embed=24', '--config.model.mlp=16'),
    *('--config.steps=1', '--config.samples.every=0', '--config.mixture.length=16'),
  ]
  code, _, err = call('main', small, *tiny_model)
  assert code == 2
  typed = '--config.mixture.tasks.text.document=paragraph'
  assert typed in err
  code, _, err = call('main', small, *tiny_model, typed)
  assert code == 0, err
  assert 'ids only, not for 4,096' in err


@pytest.mark.parametrize(
  ('args', 'says'),
  [
    ([], '--run=DIR'),
    (['--run=nowhere', '--prompt=x'], 'nowhere is no run folder'),
    (['--run=nowhere'], '--prompt=TEXT'),
    (['--run=a', '--prompt=x', '--top_p=2'], '--top_p=2'),
    (['--run=a', '--prompt=x', '--seed=-1'], '--seed=-1'),
    (['--run=a', '--prompt=x', '--stop='], '--stop'),
    (['--run=a', '--prompts=nothing.jsonl'], 'nothing.jsonl'),
  ],
)
def test_mistakes_of_generate(call, args, says):
  code, out, err = call('generate', *args)
  assert (code, out) == (2, '')
  assert err.startswith('gptjax: ')
  assert err.count('\n') == 1
  assert says in err


@pytest.mark.parametrize(
  ('args', 'says'),
  [
    ([], '--source is needed'),
    (['--source=a'], '--target is needed'),
    (['--source=a', '--target=hf:b', '--dtype=int4'], '--dtype=int4'),
    (['--source=a', '--target=b'], 'a is no run folder'),
    (['--source=hf:a', '--target=b'], 'hf:a: no such folder'),
    (['--source=gguf:a', '--target=b'], 'a: no such file'),
    (['--source=a', '--target=hf:'], 'a name is missing'),
    (['--source=a', '--target=b', '--dtype=float16'], 'a run folder holds float32'),
    (['--source=a', '--target=b', '--merge=5'], '--merge'),
    (['--sauce=a'], "'source'"),
  ],
)
def test_mistakes_of_convert(call, monkeypatch, args, says):
  monkeypatch.setenv('HF_HUB_OFFLINE', '1')
  code, out, err = call('convert', *args)
  assert code == 2
  assert says in err
  assert len(err.splitlines()) == 1
  assert not out
  assert not [p for p in pathlib.Path().iterdir() if p.name != 'cache']


def test_convert_takes_a_run_out_and_in(call):
  assert call('main', '--workdir=run')[0] == 0
  for source, target in (('run', 'hf:out'), ('hf:out', 'again'), ('again', 'gguf:x')):
    code, _, err = call('convert', f'--source={source}', f'--target={target}')
    assert code == 0, err
    assert err.splitlines()[-1].startswith(source)
  said = [
    call('generate', f'--run={name}', '--prompt=the', '--temperature=0', '--json')[1]
    for name in ('run', 'hf:out', 'again', 'gguf:x')
  ]
  assert len(set(said)) == 1
  code, _, err = call('convert', '--source=run', '--target=hf:out')
  assert code == 2
  assert 'is there already' in err


def test_mistakes_of_report(call):
  assert call('report')[0] == 2
  code, _, err = call('report', '--run=nowhere')
  assert code == 2
  assert 'nowhere' in err


def test_logging_imports_no_torch(tmp_path):
  code = (
    'import sys\n'
    'from gptjax import metrics\n'
    f'log = metrics.open_log({str(tmp_path)!r}, {{}}, step=0)\n'
    'log.write(1, "val", {"x": 1.0})\n'
    'log.close()\n'
    'assert "tensorboardX" in sys.modules\n'
    'assert "torch" not in sys.modules\n'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert list((tmp_path / 'tb').iterdir())
