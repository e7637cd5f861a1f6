"""The evaluate command: the numbers of the training, intervals, one line a mistake."""

import json

import pytest

from gptjax import evaluate, flags, train
from tests import tiny

LABELS = ('bad', 'good')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of seconds on conversations and labelled texts, evaluated in every way."""
  pytest.importorskip('rouge_score', reason='extra [eval]')
  place = tmp_path_factory.mktemp('evaluate')
  talks = [
    {
      'messages': [
        {'role': 'user', 'content': f'hi {n}'},
        {'role': 'assistant', 'content': 'ay' * (n % 3 + 1)},
      ]
    }
    for n in range(400)
  ]
  (place / 'talks.jsonl').write_text('\n'.join(map(json.dumps, talks)))
  rows = [{'text': f'w{n}', 'label': LABELS[n % 2]} for n in range(400)]
  (place / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  c = tiny.get_config('steps=2')
  c.mixture.tasks = dict(
    talks=dict(name='conversations', path=str(place / 'talks.jsonl')),
    rows=dict(name='classify', path=str(place / 'rows.jsonl'), form='conversation'),
  )
  c.mixture.length = 64
  with c.unlocked():
    c.evals = dict(
      val=dict(name='perplexity', split='val'),
      said=dict(name='text', split='val', scores=('exact', 'rouge1'), max_tokens=5),
      kind=dict(name='classify', task='rows', split='val'),
    )
  c.samples.every = 0
  c.keep_best.metric = 'said/rouge1'
  c.keep_best.mode = 'max'
  return place / 'run', train.train(c, place / 'run', say=lambda line: None)


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.delenv('GPTJAX_DATA', raising=False)

  def call(*args):
    with pytest.raises(SystemExit) as e:
      flags.command(
        evaluate.__doc__, evaluate.main, evaluate.OPTIONS, argv=['evaluate', *args]
      )
    out, err = capsys.readouterr()
    return e.value.code, out, err

  return call


def test_the_best_is_kept_by_what_an_evaluator_names(run):
  kept = json.loads((run[0] / 'checkpoints' / 'scores.json').read_text())
  assert kept['scores'] == {'2': run[1]['said/rouge1']}


def test_the_command_finds_what_the_training_found(run, command):
  folder, result = run
  code, out, err = command(f'--run={folder}', '--evals=val,said,kind', '--json')
  assert code == 0, err
  found = json.loads(out)
  assert found['step'] == 2
  for one in found['evaluations']:
    assert one['split'] == 'val'
    for name, value in one['numbers'].items():
      want = result[f'{one["name"]}/{name}']
      assert value == pytest.approx(want, rel=2e-5, abs=1e-9), name
      low, high = one['intervals'][name]
      assert low <= value <= high
  names = {name for one in found['evaluations'] for name in one['numbers']}
  assert {'nats_per_token', 'exact', 'rouge1', 'stopped', 'f1/good'} <= names


def test_tables_and_a_file_of_all_answers(run, command, tmp_path):
  folder, _ = run
  out_file = tmp_path / 'scores.json'
  args = ['--evals=rows,perplexity', '--limit=12', f'--out={out_file}']
  code, out, err = command(f'--run={folder}', *args)
  assert code == 0, err
  assert 'rows: classify of' in out
  assert 'split test, 12 examples' in out
  assert 'right \\ taken for:' in out
  assert 'perplexity: perplexity of' in out
  whole = json.loads(out_file.read_text())
  rows = whole['evaluations'][0]
  assert len(rows['answers']) == 12
  assert set(rows['answers'][0]) == {'prompt', 'answer', 'references'}
  assert sum(map(sum, rows['notes']['confusion'])) == 12
  assert f'{folder}: step 2' in err


def test_a_task_by_the_name_of_its_module(run, command):
  folder, _ = run
  code, out, _ = command(f'--run={folder}', '--evals=chitchat', '--limit=2', '--json')
  assert code == 0
  (one,) = json.loads(out)['evaluations']
  assert one['evaluator'] == 'perplexity'
  assert one['split'] == 'test'
  assert one['numbers']['bits_per_byte'] > 0


@pytest.mark.parametrize(
  ('args', 'says'),
  [
    (['--evals='], '--evals=NAME'),
    (['--evals=vla'], "--evals=vla: no such evaluation. did you mean 'val'?"),
    (['--evals=val', '--split=tset'], "--split=tset: did you mean 'test'?"),
    (['--evals=val', '--limit=-1'], '--limit=-1'),
    (['--evals=val', '--step=9'], 'step'),
    (['--evals=val', '--out=nowhere/x.json'], '--out=nowhere/x.json: a file'),
    (['--evals=gsm8k'], 'gsm8k'),
    (['--evals=val,find'], '--evals=find: no such evaluation'),
    (['--evals=val,nothing'], '--evals=nothing: no such evaluation'),
  ],
)
def test_a_mistake_is_one_line_before_anything_is_evaluated(run, command, args, says):
  code, out, err = command(f'--run={run[0]}', *args)
  assert (code, out) == (2, '')
  assert says in err.splitlines()[-1]
  assert 'Traceback' not in err


def test_no_run(command):
  code, _, err = command('--run=nowhere', '--evals=val')
  assert code == 2
  assert 'nowhere is no run folder' in err
  assert command('--evals=val')[0] == 2
