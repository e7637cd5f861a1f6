"""Chit-chat against the package's file, in both forms."""

import hashlib
import json
import pickle

import pytest

from gptjax.sources import package
from gptjax.tasks.chitchat import _turns, chitchat
from gptjax.words import Conversation, Mistake, Text


@pytest.fixture(scope='module')
def raw():
  """Every conversation as its turns' texts, read without gptjax."""
  with open(package.find_file('chitchat_dataset', 'dataset.json'), 'rb') as file:
    data = json.load(file)
  found = []
  for conversation in data.values():
    turns = [' '.join(m['text'] for m in turn) for turn in conversation['messages']]
    found.append([' '.join(t.split()) for t in turns if t.strip()])
  return found


def test_all_conversations_in_order(raw):
  task = chitchat('all')
  assert len(task) == len(raw) == 7168
  texts = [task.example(i).text for i in range(len(task))]
  flat = [t.replace('\n', ' ') for t in texts]
  assert flat == [' '.join(turns) for turns in raw]
  assert sum(t.count('\n') + 1 for t in texts) <= sum(map(len, raw))
  assert all(t and t == t.strip() and '\n\n' not in t for t in texts)
  assert isinstance(task.example(0), Text)
  assert task.example(0).text.startswith('Hello How are you doing today?\nwhats up MD ')


def test_splits_by_hash():
  parts = {name: chitchat(name) for name in ('train', 'val', 'test')}
  assert sum(map(len, parts.values())) == 7168
  val = [parts['val'].example(i).text for i in range(len(parts['val']))]
  for document in val:
    digest = hashlib.sha256(document.encode()).digest()
    assert int.from_bytes(digest[:8], 'big') / 2**64 < 0.05
  train = {parts['train'].example(i).text for i in range(len(parts['train']))}
  assert not train & set(val)
  assert len({p.digest for p in parts.values()}) == 3
  with pytest.raises(Mistake, match="split 'test' is off"):
    chitchat('test', splits={'test': 0.0})


def test_conversations_are_split_as_texts_are(raw):
  for name in ('train', 'val'):
    text, talk = chitchat(name), chitchat(name, form='conversation')
    assert (text.kind, talk.kind) == ('text', 'conversation')
    texts = [text.example(i).text for i in range(len(text))]
    answered = [t for t in texts if '\n' in t]
    talks = [talk.example(i) for i in range(len(talk))]
    assert ['\n'.join(turn.text for turn in t.turns) for t in talks] == answered
    assert all(isinstance(t, Conversation) for t in talks)
    for one in talks:
      roles = [turn.role for turn in one.turns]
      assert roles == (['user', 'assistant'] * len(roles))[: len(roles)]
    assert text.digest != talk.digest
  assert len(chitchat('all', form='conversation')) == sum(len(t) > 1 for t in raw)


def test_blank_messages_and_turns():
  def say(sender, *texts):
    return [{'sender': sender, 'text': t} for t in texts]

  messages = [say('a', ' hi ', ''), say('b', ' \n'), say('a', 'you\nthere'), [],
              say('b', 'yes')]  # fmt: skip
  assert _turns(messages) == ['hi you there', 'yes']
  assert _turns([[]]) == []


def test_it_pickles():
  task = pickle.loads(pickle.dumps(chitchat('val', form='conversation')))
  assert task.example(3) == chitchat('val', form='conversation').example(3)
  assert task.where(0).startswith('chitchat:')


def test_mistakes(monkeypatch):
  with pytest.raises(Mistake, match="did you mean 'conversation'"):
    chitchat(form='conversations')
  with pytest.raises(Mistake, match="did you mean 'val'"):
    chitchat('vall')
  monkeypatch.setattr(package.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(
    Mistake, match=r'PyPI \(MIT licence\): pip install chitchat-dataset'
  ):
    chitchat()
