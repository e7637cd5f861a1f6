"""Conversations and labels: their weights, where they are cut, how they are packed."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data import fit, loader, shards, tokens
from gptjax.tokenizers import template, turns
from gptjax.words import Conversation, Label, Mistake, Text, Turn
from tests.data.fakes import TOKENIZER, words

OWN = template.own(TOKENIZER)
C = TOKENIZER.controls


class Examples:
  """A task of given examples."""

  def __init__(self, examples, kind='conversation', name='talks'):
    self.examples, self.kind, self.name = list(examples), kind, name
    self.digest = hashlib.sha256(json.dumps(self.examples).encode()).hexdigest()

  def __len__(self):
    return len(self.examples)

  def example(self, index):
    return self.examples[index]


def talk(*texts, first='user', weights=()):
  roles = ('user', 'assistant') if first == 'user' else ('assistant', 'user')
  pairs = enumerate(zip(texts, weights or [1.0] * len(texts), strict=True))
  return Conversation(tuple(Turn(roles[i % 2], text, w) for i, (text, w) in pairs))


def talks(count, longest=5):
  return Examples(
    talk(*(f'{n}.{t}' + 'x' * (7 * n * t % 23) for t in range(1 + n % longest)))
    for n in range(count)
  )


def recipe(length=None, roles=None):
  return fit.Recipe(OWN, fit.make_roles(roles), length)


def whole(example, roles=fit.ROLES):
  return turns.join(OWN.encode(example, roles))


def test_what_fits_is_kept_whole():
  example = talk('Hi', 'Yo!', 'How?')
  found = fit.fit(example, TOKENIZER, recipe(length=len(whole(example).ids) - 1))
  assert found.encoded.ids.tolist() == whole(example).ids.tolist()
  assert not found.cut
  assert found.bytes == 3


def test_what_does_not_fit_is_cut_after_an_answer():
  example = talk('Hi', 'Yo!', 'How are you?', 'Fine.', 'Good')
  size = len(whole(talk('Hi', 'Yo!')).ids)
  for length in range(size - 1, len(whole(talk(*'123', 'Fine.')).ids)):
    found = fit.fit(example, TOKENIZER, recipe(length))
    assert found.encoded.ids.tolist() == whole(talk('Hi', 'Yo!')).ids.tolist()
    assert found.cut
    assert found.bytes == 3
  assert fit.fit(example, TOKENIZER, recipe(size - 2)) == (None, 0.0, False)


@settings(max_examples=100, deadline=None)
@given(
  st.lists(
    st.tuples(st.sampled_from(turns.ROLES), st.text('ab é', max_size=9)), max_size=8
  ),
  st.integers(1, 60),
)
def test_a_cut_one_ends_with_an_answer_and_none_is_longer_than_a_row(turns, length):
  example = Conversation(tuple(Turn(*turn) for turn in turns))
  found = fit.fit(example, TOKENIZER, recipe(length))
  parts = OWN.encode(example, fit.ROLES)
  sizes = np.cumsum([len(part.ids) for part in parts])
  answers = [n for n, turn in enumerate(turns) if turn[0] == 'assistant']
  if found.encoded is None:
    assert not answers or sizes[answers[0]] > length + 1
    return
  assert len(found.encoded.ids) <= length + 1
  assert (
    found.encoded.ids.tolist() == whole(example).ids[: len(found.encoded.ids)].tolist()
  )
  assert found.cut == (len(found.encoded.ids) < sizes[-1])
  if found.cut:
    last = [n for n in answers if sizes[n] <= length + 1][-1]
    assert len(found.encoded.ids) == sizes[last]
  kept = 1 + (last if found.cut else len(turns) - 1)
  said = [text for role, text in turns[:kept] if role == 'assistant']
  assert found.bytes == len(''.join(said).encode())


def test_weights_of_roles_and_turns_multiply():
  example = talk('Hi', 'Yo!', weights=[1.0, 0.5])
  found = fit.fit(example, TOKENIZER, recipe(roles={'user': 0.5}))
  assert found.bytes == 0.5 * 2 + 0.5 * 3
  assert found.encoded.weights.tolist() == [0, 0, *[0.5] * 3, 0, *[0.5] * 4]
  silent = talk('Hi', 'Yo!', weights=[1.0, 0.0])
  assert fit.fit(silent, TOKENIZER, recipe()).encoded is None


def test_a_label_is_the_last_target():
  found = fit.fit(Label('abc', 2), TOKENIZER, recipe())
  assert found.encoded.ids.tolist() == [C['<|start|>'], *b'abc', C['<|end|>'], 2]
  assert found.encoded.weights.tolist() == [0, 0, 0, 0, 0, 1]
  short = fit.fit(Label('abcdef', 2), TOKENIZER, recipe(length=5))
  assert short.encoded.ids.tolist() == [C['<|start|>'], *b'abc', C['<|end|>'], 2]
  assert short.cut
  number = fit.fit(Label('abc', -1.5), TOKENIZER, recipe())
  assert number.encoded.ids[-1] == 0
  assert number.encoded.scores.tolist() == [0, 0, 0, 0, 0, -1.5]
  with pytest.raises(Mistake, match='class of index 999'):
    fit.fit(Label('abc', 999), TOKENIZER, recipe())


def ids(found, part=None):
  part = part or found.part
  spans = zip(found.parts, found.offsets, found.lengths, strict=True)
  return [part(int(p))[o : o + n].tolist() for p, o, n in spans]


@pytest.mark.parametrize('workers', [0, 2])
def test_shards_hold_what_memory_holds(tmp_path, workers):
  task, how = talks(60), recipe(length=40)
  memory = tokens.in_memory(task, TOKENIZER, how)
  shards.write(task, TOKENIZER, tmp_path, count=7, recipe=how, workers=workers)
  stored = shards.open_shards(tmp_path, tokens.data_digest(task, TOKENIZER, how))
  assert ids(stored) == ids(memory)
  assert ids(stored, stored.extras['weights']) == ids(memory, memory.extras['weights'])
  for name in ('bytes', 'cut', 'left', 'digest', 'targets'):
    assert getattr(stored, name) == getattr(memory, name)
  fitted = [fit.fit(e, TOKENIZER, how) for e in task.examples]
  assert memory.left == sum(f.encoded is None for f in fitted) > 0
  assert memory.cut == sum(f.cut for f in fitted) > 0
  assert memory.bytes == sum(f.bytes for f in fitted)
  again = tmp_path / '00001.weights'
  again.write_bytes(again.read_bytes()[:-4] + b'\0\0\0\0')
  spoilt = shards.open_shards(tmp_path)
  with pytest.raises(Exception, match=r'00001\.weights is damaged'):
    spoilt.extras['weights'](1)


def test_a_shard_may_be_empty(tmp_path):
  task = Examples([talk('Hi')] * 5 + [talk('Hi', 'Yo!')] * 5)
  shards.write(task, TOKENIZER, tmp_path, count=5, recipe=recipe(40))
  found = shards.open_shards(tmp_path)
  assert len(ids(found)) == 5
  assert found.left == 5


def test_text_pays_nothing(tmp_path):
  task = words(20, 1)
  shards.write(task, TOKENIZER, tmp_path, count=7)
  assert not list(tmp_path.glob('*.weights'))
  assert not shards.open_shards(tmp_path).extras
  digest = hashlib.sha256(f'{task.digest}/{TOKENIZER.digest}'.encode()).hexdigest()
  assert tokens.data_digest(task, TOKENIZER, recipe(40)) == digest


def test_the_digest_hangs_on_template_roles_and_length():
  task = talks(5)
  found = {
    tokens.data_digest(task, TOKENIZER, how)
    for how in (recipe(40), recipe(41), recipe(40, {'user': 0.5}))
  }
  assert len(found) == 3
  with pytest.raises(Mistake, match='they need a template'):
    tokens.data_digest(task, TOKENIZER)


def batches(tasks, count=6, length=48, **settings):
  source = loader.make_source(
    tasks, TOKENIZER, template=OWN, length=length, batch_size=4, window=50, **settings
  )
  return [{k: np.asarray(x) for k, x in source.next().items()} for _ in range(count)]


def test_rows_hold_whole_conversations_with_their_weights():
  task = talks(60)
  known = {}
  for example in task.examples:
    found = fit.fit(example, TOKENIZER, recipe(48))
    if found.encoded:
      known[tuple(found.encoded.ids.tolist())] = found.encoded.weights.tolist()
  for batch in batches({'a': (task, 1.0)}):
    for row in range(4):
      for n in range(1, batch['segments'][row].max() + 1):
        mine = batch['segments'][row] == n
        inputs, targets = batch['tokens'][row][mine], batch['targets'][row][mine]
        weights = known[(*inputs.tolist(), int(targets[-1]))]
        assert batch['weights'][row][mine].tolist() == weights[1:]
    assert (batch['weights'][batch['segments'] == 0] == 0).all()


def test_a_resume_goes_on_with_the_same_weights():
  tasks = {'a': (talks(60), None)}
  settings = dict(template=OWN, length=48, batch_size=4, window=50)
  first = loader.make_source(tasks, TOKENIZER, **settings)
  for _ in range(3):
    first.next()
  state = first.get_state()
  rest = [first.next() for _ in range(3)]
  second = loader.make_source(tasks, TOKENIZER, **settings)
  second.set_state(state)
  for batch in rest:
    found = second.next()
    assert all((np.asarray(found[k]) == np.asarray(batch[k])).all() for k in batch)


def test_kinds_mix():
  labels = Examples([Label(f'text {n}', n % 3) for n in range(30)], 'label', 'labels')
  texts = words(40, 1, 'text')
  tasks = {'c': (talks(60), 1.0), 't': (texts, 1.0), 'l': (labels, 1.0)}
  kinds = set()
  for batch in batches(tasks, 12):
    assert batch['scores'].shape == batch['tokens'].shape
    for row in range(4):
      for n in range(1, batch['segments'][row].max() + 1):
        mine = batch['segments'][row] == n
        tokens_, weights = batch['tokens'][row][mine], batch['weights'][row][mine]
        if C['<|user|>'] in tokens_:
          kinds.add('conversation')
          assert weights[0] == 0 < weights.max()
        elif weights.tolist() == [0] * (len(weights) - 1) + [1]:
          kinds.add('label')
          assert batch['scores'][row][mine][-1] == batch['targets'][row][mine][-1]
        else:
          kinds.add('text')
          assert (weights == 1).all()
          assert (batch['scores'][row][mine] == 0).all()
  assert kinds == {'conversation', 'label', 'text'}


def test_what_is_cut_and_left_out_is_told():
  lines = []
  batches({'a': (talks(60), 1.0)}, 1, length=40, say=lines.append)
  memory = tokens.in_memory(talks(60), TOKENIZER, recipe(40))
  cut, left = memory.cut, memory.left
  assert lines == [
    f'a: {60 - left} documents, {memory.targets:,} tokens, {cut} ({cut / 60:.1%}) cut '
    f'to fit, {left} ({left / 60:.1%}) left out.'
  ]


def test_evaluation_weighs_what_training_weighs():
  task = talks(40)
  split = loader.eval_batches(task, TOKENIZER, 48, 4, template=OWN)
  fitted = [fit.fit(e, TOKENIZER, recipe(48)) for e in task.examples]
  total = sum(float(f.encoded.weights.sum()) for f in fitted if f.encoded)
  assert sum(float(b['weights'].sum()) for b in split.batches) == total
  assert split.bytes == sum(f.bytes for f in fitted)


@pytest.mark.parametrize(
  ('settings', 'line'),
  [
    (
      dict(packing='concat'),
      'packing=concat would cut within the answers of .*best_fit',
    ),
    (dict(roles={'asistant': 1}), "roles has no 'asistant': did you mean 'assistant'"),
    (dict(roles={'user': -1}), r'roles\.user=-1'),
    (dict(roles={'user': float('nan')}), r'roles\.user=nan'),
    (dict(roles={'assistant': 0}), 'none of 60 conversations is left'),
    (dict(length=5), 'none of 60 conversations is left'),
  ],
)
def test_mistakes(settings, line):
  with pytest.raises(Mistake, match=line):
    batches({'a': (talks(60), 1.0)}, 1, **settings)


def test_an_example_of_another_kind_is_a_mistake():
  with pytest.raises(Mistake, match='example 0 is of type Text'):
    tokens.in_memory(Examples([Text('a')]), TOKENIZER, recipe())
