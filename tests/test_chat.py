"""From a file of conversations to a model that answers, as it is asked to."""

import json

import pytest

from gptjax import flags, train, view
from gptjax.generate import __main__ as generate
from gptjax.run import open_run
from gptjax.words import Conversation, Mistake, Turn
from tests import tiny

ANSWERS = {'loud': 'AY!', 'soft': 'ay.'}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Trained to answer every user in the style asked for."""
  place = tmp_path_factory.mktemp('chat')
  records = [
    {
      'messages': [
        {'role': 'user', 'content': f'hi {n}'},
        {'role': 'assistant', 'content': ANSWERS[style]},
      ],
      'manner': style,
    }
    for n in range(200)
    for style in ANSWERS
  ]
  path = place / 'talks.jsonl'
  path.write_text('\n'.join(map(json.dumps, records)))
  config = tiny.get_config('steps=48')
  task = dict(name='conversations', path=str(path), control=dict(style='manner'))
  config.mixture.tasks = dict(talks=task)
  config.mixture.length = 64
  config.model.dropout = 0.0
  config.evals.val.task = 'talks'
  config.samples = dict(
    prompts=('hi 5',), max_tokens=8, temperature=0.0, every=48, chat=True
  )
  config.save_every = config.log_every = config.evals.val.every = 48
  config.optim.lr = 3e-2
  lines = []
  result = train.train(config, place / 'run', say=lines.append)
  return place / 'run', result, lines, config.to_dict()


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


def test_the_answer_is_learnt_and_nothing_else_counts(run):
  _, result, lines, _ = run
  assert result['val/nats_per_token'] < 0.2
  assert any('0 (0.0%) cut to fit' in line for line in lines)


def test_its_samples_are_answers(run):
  text = (run[0] / 'samples.md').read_text()
  assert '> hi 5\n> **ay.**' in text or '> hi 5\n> **AY!**' in text


def test_it_answers_as_it_is_asked_to(run):
  opened = open_run(run[0])
  messages = [{'role': 'user', 'content': 'hi 7'}]
  for style, answer in ANSWERS.items():
    assert opened.chat(messages, control={'style': style}, temperature=0) == answer
  assert opened.chat(messages, temperature=0) in ANSWERS.values()
  talk = Conversation((Turn('user', 'hi 7'),), (('style', 'loud'),))
  (result,) = opened.generate_all([talk], temperature=0)
  assert result.finish_reason == 'stop'
  assert result.tokens[-1] in opened.template.stops
  assert result.text == ANSWERS['loud']


def test_the_command_asks_for_it(run, command):
  args = (f'--run={run[0]}', '--temperature=0', '--chat', '--prompt=hi 3')
  code, out, _ = command(*args, '--control=style=soft')
  assert (code, out) == (0, 'ay.\n')
  code, out, _ = command(*args, '--control=style=loud', '--json')
  assert code == 0
  found = json.loads(out)
  assert (found['prompt'], found['text']) == ('hi 3', 'AY!')
  assert found['messages'] == [{'role': 'user', 'content': 'hi 3'}]


def test_the_system_may_say_something_first(run, command):
  args = (f'--run={run[0]}', '--temperature=0', '--prompt=hi 3')
  code, out, _ = command(*args, '--chat', '--system=style: loud', '--json')
  assert code == 0
  found = json.loads(out)
  assert found['text'] == 'AY!'
  assert found['messages'][0] == {'role': 'system', 'content': 'style: loud'}
  code, _, err = command(*args, '--system=style: loud')
  assert (code, '--system goes with --chat' in err) == (2, True)


def test_prompts_may_be_conversations(run, command, tmp_path):
  file = tmp_path / 'prompts.jsonl'
  turns = [
    {'role': 'user', 'content': 'hi 1'},
    {'role': 'assistant', 'content': 'AY!'},
    {'role': 'user', 'content': 'hi\n2'},
  ]
  file.write_text(json.dumps({'messages': turns}))
  args = (f'--run={run[0]}', f'--prompts={file}', '--max_tokens=4', '--n=2')
  code, out, _ = command(*args)
  assert code == 0
  assert out.count('> hi\n> 2\n') == 2
  file.write_text('{"messages": [{"role": "usr"}]}')
  code, _, err = command(*args)
  assert code == 2
  assert f"{file}:1: turn 1 has role 'usr': did you mean 'user'" in err


@pytest.mark.parametrize(
  ('args', 'line'),
  [
    (['--control=style'], '--control=style: allowed is key=value'),
    (['--control=style='], '--control=style=: allowed is key=value'),
    (['--control=stile=loud'], "no control 'stile': did you mean 'style'"),
  ],
)
def test_mistakes(run, command, args, line):
  code, _, err = command(f'--run={run[0]}', '--prompt=hi', *args)
  assert code == 2
  assert line in err
  assert len(err.strip().splitlines()) <= 2
  with pytest.raises(Mistake, match='turn 1 says nothing'):
    open_run(run[0]).chat([{'role': 'user', 'content': ''}])


def test_a_text_is_continued_after_its_control(run):
  opened = open_run(run[0])
  asked = opened.generate_all(['hi'], control={'style': 'soft'}, max_tokens=3)
  said = opened.generate_all(['style: soft\n\nhi'], max_tokens=3)
  assert asked[0].tokens == said[0].tokens


def test_view_shows_what_weighs(run):
  batch, tokenizer = view.first_rows(run[3], 2, str(run[0]), '')
  text = view.rows_text(batch, tokenizer, 2)
  assert 'style: ' in text.replace('│', '')
  assert '    weight 1   A│Y│!│<|turn|>' in text or 'a│y│.│<|turn|>' in text
  for line in text.splitlines():
    if '<|user|>' in line:
      assert line.startswith('    weight 0')
