"""Labels of texts, in words and as classes; splits that keep the shares of classes."""

import collections
import json

import pytest

from gptjax.tasks.classify import classify
from gptjax.words import Conversation, Label, Mistake, Turn


@pytest.fixture
def path(tmp_path):
  rows = [{'text': f'text {n}', 'label': 'ab'[n % 10 == 0], 'x': n} for n in range(400)]
  file = tmp_path / 'a.jsonl'
  file.write_text('\n'.join(map(json.dumps, rows)))
  return str(file)


def test_a_label_is_the_index_of_its_class(path):
  task = classify(path, split='all')
  assert task.labels == ('a', 'b')
  assert [task.example(i) for i in range(2)] == [Label('text 0', 1), Label('text 1', 0)]
  assert (task.kind, task.grade) == ('label', None)
  other = classify(path, split='all', labels=('b', 'a'))
  assert other.example(0) == Label('text 0', 0)
  assert task.digest != other.digest


def test_names_for_values(path):
  task = classify(path, split='all', labels={'a': 'ham', 'b': 'spam'})
  assert task.labels == ('ham', 'spam')
  turned = classify(path, split='all', labels={'b': 'spam', 'a': 'ham'})
  assert (turned.labels, turned.digest) == (task.labels, task.digest)


def test_in_words(path):
  task = classify(path, split='all', form='conversation', instruction='a or b?')
  turns = (Turn('system', 'a or b?'), Turn('user', 'text 0'), Turn('assistant', 'b'))
  assert task.example(0) == Conversation(turns)
  assert task.labels == ('a', 'b')
  assert [task.grade(task.example(0), a) for a in (' B\n', 'a', 'bb')] == [1, 0, 0]


def test_numbers(path):
  task = classify(path, label='x', form='number', split='all')
  assert task.example(3) == Label('text 3', 3.0)
  assert isinstance(task.example(3).label, float)
  assert task.labels == ()
  with pytest.raises(Mistake, match=r"a\.jsonl:1: field 'label' is no number: 'b'"):
    classify(path, form='number')


def test_by_class_each_has_its_share_and_copies_stay_together(path):
  parts = {
    split: classify(path, by='class', split=split, splits=dict(val=0.2, test=0.1))
    for split in ('train', 'val', 'test')
  }
  counts = {
    split: collections.Counter(t.example(i).label for i in range(len(t)))
    for split, t in parts.items()
  }
  assert counts['test'] == {0: 36, 1: 4}
  assert counts['val'] == {0: 72, 1: 8}
  said = [t.example(i).text for t in parts.values() for i in range(len(t))]
  assert len(set(said)) == len(said) == 400
  again = classify(path, by='class', split='test', splits=dict(val=0.2, test=0.1))
  assert again.digest == parts['test'].digest


def test_control_of_conversations(path):
  task = classify(path, form='conversation', control={'kind': 'label'}, split='val')
  assert all(
    task.example(i).control == (('kind', task.example(i).turns[-1].text),)
    for i in range(len(task))
  )


@pytest.mark.parametrize(
  ('change', 'line'),
  [
    (dict(form='labels'), "form='labels': did you mean 'label'"),
    (dict(by='clas'), "did you mean 'class'"),
    (dict(label='lable'), "'lable'"),
    (dict(text='txt'), r"a\.jsonl:1: no field 'txt': did you mean 'text'"),
    (dict(labels=('a', 'c')), r"a\.jsonl:1: label 'b'"),
    (dict(control={'kind': 'label'}), 'of form="conversation" only'),
    (dict(form='conversation', control={'kind': 'no'}), r"a\.jsonl:1: no field 'no'"),
    (dict(form='conversation', control='label'), 'allowed is dict'),
    (
      dict(form='conversation', control={'kind': 'label'}, control_drop=2),
      'control_drop=2',
    ),
  ],
)
def test_mistakes(path, change, line):
  with pytest.raises(Mistake, match=line):
    classify(path, **change)


def test_hatespeech(shared):
  names = {'0': 'hate', '1': 'offensive', '2': 'neither'}
  args = dict(text='tweet', label='class', labels=names, by='class', data=str(shared))
  task = classify('hatespeech', split='all', **args)
  counts = collections.Counter(task.example(i).label for i in range(len(task)))
  assert counts == {0: 1430, 1: 19190, 2: 4163}
  test = classify('hatespeech', split='test', splits=dict(test=0.1), **args)
  counts = collections.Counter(test.example(i).label for i in range(len(test)))
  assert [counts[n] for n in range(3)] == [143, 1919, 416]
