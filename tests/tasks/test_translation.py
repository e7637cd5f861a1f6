"""Parallel files as conversations; the real set where it lies."""

import pytest

from gptjax.tasks.translation import translation
from gptjax.words import Mistake, Turn


@pytest.fixture
def files(tmp_path):
  (tmp_path / 'train.en').write_text(''.join(f'line {n}\n' for n in range(300)))
  (tmp_path / 'train.de').write_text(''.join(f'Zeile {n}\n' for n in range(300)))
  (tmp_path / 'own.en').write_text('one\n')
  (tmp_path / 'own.de').write_text('eins\n')
  return tmp_path


def test_a_line_is_asked_and_answered(files):
  path = str(files / 'train.{}')
  task = translation(path, split='all')
  assert task.kind == 'conversation'
  assert task.example(7).turns == (
    Turn('system', 'Translate from English to German.'),
    Turn('user', 'line 7'),
    Turn('assistant', 'Zeile 7'),
  )
  assert task.references(7) == ['Zeile 7']
  assert task.where(7) == f'{files}/train.en:8'
  back = translation(path, 'de', 'en', 'all', instruction='To {target}:', role='user')
  assert back.example(0).turns == (
    Turn('user', 'To English:\n\nZeile 0'),
    Turn('assistant', 'line 0'),
  )
  bare = translation(path, split='all', instruction='')
  assert [turn.role for turn in bare.example(0).turns] == ['user', 'assistant']
  assert len({task.digest, back.digest, bare.digest}) == 3


def test_splits_by_hash_or_files_of_their_own(files):
  path = str(files / 'train.{}')
  parts = [translation(path, split=split) for split in ('train', 'val', 'test')]
  said = [t.example(i).turns[1].text for t in parts for i in range(len(t))]
  assert sorted(said) == sorted(f'line {n}' for n in range(300))
  own = dict(val_path=str(files / 'own.{}'), splits={'test': 0.0})
  assert len(translation(path, **own)) == 300
  assert translation(path, split='val', **own).example(0).turns[1].text == 'one'


def test_what_asks_the_same_lies_on_one_side(files):
  (files / 'train.en').write_text(''.join(f'line {n % 60}\n' for n in range(300)))
  sides = []
  for split in ('train', 'val', 'test'):
    task = translation(str(files / 'train.{}'), split=split, splits={'val': 0.3})
    sides.append({task.example(i).turns[1].text for i in range(len(task))})
  assert sum(map(len, sides)) == len(set.union(*sides)) == 60


@pytest.mark.parametrize(
  ('change', 'line'),
  [
    (dict(path='train.en'), r'path=train\.en: \{\} in it stands for the language'),
    (dict(target='fr'), r'no file matches .*train\.fr'),
    (dict(role='assistant'), 'allowed are system and user'),
    (dict(split='vla'), "did you mean 'val'"),
  ],
)
def test_mistakes(files, change, line):
  with pytest.raises(Mistake, match=line):
    translation(**{'path': str(files / 'train.{}'), **change})


def test_an_empty_side_is_a_mistake_with_its_line(files):
  (files / 'own.de').write_text('\n')
  with pytest.raises(Mistake, match=r"own\.en:1: field 'target' is empty"):
    translation(str(files / 'own.{}'), split='all')


def test_multi30k(shared):
  sizes = {'train': 29_000, 'val': 1_014, 'test': 1_000}
  for split, size in sizes.items():
    assert len(translation(split=split, data=str(shared))) == size
  first = translation(split='test', target='fr', data=str(shared)).example(0).turns
  assert first[0].text == 'Translate from English to French.'
  assert first[1].text == 'A man in an orange hat starring at something.'


def test_a_set_that_is_not_there_says_where_it_comes_from(tmp_path):
  with pytest.raises(Mistake, match=r'multi30k/dataset.*\(none stated'):
    translation(data=str(tmp_path))
