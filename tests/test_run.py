"""From a config's mixture to tasks, texts and batches."""

import pytest
from etils import epath

from experiments import common
from gptjax import run
from gptjax.tokenizers.bytes import bytes as byte_tokenizer
from gptjax.words import Conversation, Label, Mistake, Pair, Text, Turn
from tests import tiny


class Some:
  name, kind, digest = 'some', 'text', '0' * 64

  def __init__(self, *examples):
    self.examples = examples

  def __len__(self):
    return len(self.examples)

  def example(self, index):
    return self.examples[index]


def test_a_tokenizer_is_trained_on_all_that_is_said():
  control = (('style', 'formal'),)
  said = (Turn('user', 'Hi'), Turn('assistant', 'Yo!'))
  system = (Turn('system', 'Be kind.'), *said)
  examples = [
    Text('a'),
    Text('b', control),
    Conversation(said),
    Conversation(said, control),
    Conversation(system, control),
    Label('c', 1),
    Pair(Conversation(said[:1]), 'Yes', 'No'),
  ]
  first, *rest = examples
  mixture = {'x': (Some(first), None), 'y': (Some(*rest), None)}
  assert list(run.texts(mixture)) == [
    'a',
    'style: formal\n\nb',
    *('Hi', 'Yo!'),
    *('style: formal', 'Hi', 'Yo!'),
    *('style: formal\n\nBe kind.', 'Hi', 'Yo!'),
    'c',
    *('Hi', 'Yes', 'No'),
  ]


def source(tmp_path, **mixture):
  config = tiny.get_config(f'text={tiny.write_corpus(tmp_path)}').to_dict()
  task = config['mixture']['tasks']['words']
  del task['weight']
  config['mixture']['tasks'] = {'a': dict(task), 'b': dict(task, split='val')}
  for name, value in mixture.items():
    if name in ('a', 'b'):
      config['mixture']['tasks'][name] |= value
    else:
      config['mixture'][name] = value
  tokenizer = byte_tokenizer()
  path = epath.Path(tmp_path)
  tokenizer.save(path / 'tokenizer')
  tasks = run.make_mixture(config, '')
  return run.make_source(config, tasks, tokenizer, path, print, batch_size=2)


@pytest.mark.parametrize(
  ('mixture', 'line'),
  [
    (
      dict(temprature=2.0),
      "c.mixture takes no 'temprature': did you mean 'temperature'",
    ),
    (dict(temperature=-1), r'c\.mixture\.temperature=-1'),
    (dict(a=dict(weight=1.0)), 'tasks.b has no weight and a has one'),
    (dict(a=dict(epochs=0)), r'tasks\.a\.epochs=0'),
    (dict(a=dict(epochs=2), b=dict(weight=1.0)), 'tasks.a has no weight and b has one'),
    (dict(roles=dict(usr=1.0)), "roles has no 'usr': did you mean 'user'"),
  ],
)
def test_mistakes_of_a_mixture(tmp_path, mixture, line):
  with pytest.raises(Mistake, match=line):
    source(tmp_path, **mixture)


def test_epochs_reach_the_source(tmp_path):
  made = source(tmp_path, b=dict(epochs=4.0))
  for _ in range(400):
    made.next()
  stats = made.stats()
  made.close()
  assert stats['epochs/b'] / stats['epochs/a'] == pytest.approx(4, rel=0.15)


def test_each_task_has_an_evaluation_of_its_own(tmp_path):
  config = tiny.get_config(f'text={tiny.write_corpus(tmp_path)}')
  task = config.mixture.tasks.words.to_dict()
  tasks = dict(a=dict(task), b=dict(task, splits=dict(val=0.2)))
  config.mixture = common.mixture(tasks, 32)
  config.evals = common.evals_of(tasks, name='perplexity', every=7)
  found = run.eval_tasks(config.to_dict(), '')
  assert list(found) == ['val_a', 'val_b']
  assert 0 < len(found['val_a']) < len(found['val_b'])
  assert config.evals.val_b.to_dict() == dict(
    name='perplexity', every=7, task='b', split='val'
  )
