"""The command: answers as text and JSON, and one line for every mistake."""

import json
import subprocess
import sys

import pytest

from gptjax import flags, train
from gptjax.generate import __main__ as generate
from gptjax.run import open_run
from tests import tiny


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  config = tiny.get_config(f'text={tiny.write_corpus(folder)},steps=2')
  config.samples.prompts = ()
  train.train(config, folder / 'run', say=lambda line: None)
  return folder / 'run'


@pytest.fixture
def command(capsys):
  def call(*args):
    with pytest.raises(SystemExit) as e:
      flags.command(
        generate.__doc__, generate.main, generate.OPTIONS, argv=['generate', *args]
      )
    out, err = capsys.readouterr()
    return e.value.code, out, err

  return call


def test_one_prompt_streams_the_text_that_python_gives(run, command):
  code, out, err = command(
    f'--run={run}', '--prompt=the', '--max_tokens=12', '--seed=3'
  )
  assert code == 0
  assert 'step 2' in err
  assert out == open_run(run).generate('the', max_tokens=12, seed=3) + '\n'


def test_json_lines_come_in_the_order_of_the_prompts(run, command, tmp_path):
  prompts = ['the', '', 'Grüße\n', 'a' * 20, 'x']
  file = tmp_path / 'prompts.jsonl'
  lines = [json.dumps({'prompt': p, 'more': 1}) for p in prompts[:-1]] + ['', '"x"']
  file.write_text('\n'.join(lines))
  args = ('--n=2', '--max_tokens=6', '--seed=9', '--top_k=40', '--json')
  code, out, _ = command(f'--run={run}', f'--prompts={file}', *args)
  assert code == 0
  found = [json.loads(line) for line in out.splitlines()]
  assert [(x['prompt'], x['answer']) for x in found] == [
    (p, i) for p in prompts for i in range(2)
  ]
  tokenizer = open_run(run).tokenizer
  for x in found:
    assert set(x) == {'prompt', 'text', 'tokens', 'finish_reason', 'answer'}
    assert x['text'] == tokenizer.decode(x['tokens'])
    assert x['finish_reason'] == ('length' if len(x['tokens']) == 6 else 'stop')
  one = ('--prompt=Grüße\n', '--seed=10', '--max_tokens=6', '--top_k=40', '--json')
  _, out, _ = command(f'--run={run}', *one)
  assert json.loads(out)['tokens'] == found[5]['tokens']


def test_several_answers_stand_under_their_prompt(run, command):
  code, out, _ = command(f'--run={run}', '--prompt=a\nb', '--n=2', '--max_tokens=3')
  assert code == 0
  assert out.count('> a\n> b\n') == 2


@pytest.mark.parametrize(
  ('text', 'line'),
  [
    ('', 'empty'),
    ('\n \n', 'empty'),
    ('{"prompt": "a"}\n{"prompt": ', ':2: no JSON'),
    ('{"prompt": "a"}\n\n{"text": "b"}', ':3: no field "prompt"; fields: text'),
    ('{"prompt": 3}', ':1: a prompt is a string, not int'),
    ('[' * 100_000, ':1: no JSON'),
    (b'{"prompt": "\xff"}', ':1: no'),
  ],
)
def test_bad_prompt_files_are_mistakes_with_file_and_line(
  command, tmp_path, text, line
):
  file = tmp_path / 'prompts.jsonl'
  file.write_bytes(text if isinstance(text, bytes) else text.encode())
  code, out, err = command('--run=none', f'--prompts={file}')
  assert (code, out) == (2, '')
  assert err.startswith(f'gptjax: {file}')
  assert line in err
  assert err.count('\n') == 1


@pytest.mark.parametrize(
  ('args', 'line'),
  [
    ((), 'run'),
    (('--run=none',), '--prompt'),
    (('--run=none', '--prompt=a', '--prompts=b'), '--prompt'),
    (('--run=none', '--prompt=a'), 'none is no run folder'),
    (('--run=none', '--prompts=none.jsonl'), 'none.jsonl'),
    (('--run=none', '--prompt=a', '--temperature=-1'), 'temperature'),
    (('--run=none', '--prompt=a', '--top_p=0'), 'top_p'),
    (('--run=none', '--prompt=a', '--top_p=1.5'), 'top_p'),
    (('--run=none', '--prompt=a', '--min_p=-1'), 'min_p'),
    (('--run=none', '--prompt=a', '--repetition_penalty=0'), 'repetition_penalty'),
    (('--run=none', '--prompt=a', '--n=0'), '--n=0'),
    (('--run=none', '--prompt=a', '--max_tokens=0'), '--max_tokens=0'),
    (('--run=none', '--prompt=a', '--stop='), '--stop'),
    (('--run=none', '--prompt=a', '--temprature=1'), 'temperature'),
  ],
)
def test_mistakes_are_one_line(command, args, line):
  code, out, err = command(*args)
  assert (code, out) == (2, '')
  assert line in err
  assert err.count('\n') == 1


def test_mistakes_about_the_run_are_one_line(run, command):
  code, _, err = command(f'--run={run}', '--prompt=' + 'a' * 32)
  assert code == 2
  assert 'context of 32' in err.splitlines()[-1]
  code, _, err = command(f'--run={run}', '--prompt=a', '--step=7')
  assert code == 2
  assert '7' in err.splitlines()[-1]


def test_help_is_quick_and_needs_no_jax():
  code = (
    "import sys; sys.argv = ['generate', '--help']; import runpy\n"
    'try:\n'
    "  runpy.run_module('gptjax.generate', run_name='__main__')\n"
    'except SystemExit as e:\n'
    "  assert e.code == 0 and 'jax' not in sys.modules"
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, timeout=60
  )
  assert done.returncode == 0, done.stderr
  assert '--temperature' in done.stdout
