"""Precision, recall and F1 against scikit-learn and by hand."""

import warnings

import numpy as np
import pytest

from gptjax.evals import _confusion, _scores


def numbers(right, guessed, labels):
  return _scores.numbers(_confusion.scores(np.array(right), np.array(guessed), labels))


def test_by_hand():
  found = numbers([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 2], ('a', 'b', 'c'))
  assert found['accuracy'] == pytest.approx(4 / 6)
  assert found['precision/a'] == pytest.approx(2 / 3)
  assert found['recall/b'] == pytest.approx(1 / 2)
  assert found['f1/c'] == 1
  assert found['f1'] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
  scores = _confusion.scores(np.array([0, 1, 1]), np.array([1, 1, 0]), ('a', 'b'))
  assert scores.notes == {'labels': ['a', 'b'], 'confusion': [[0, 1], [1, 1]]}
  assert set(numbers([0], [0], ('a', 'b'))) == set(_confusion.names(('a', 'b')))


@pytest.mark.parametrize('absent', [(), (1,), (0, 2)])
def test_equals_scikit_learn(absent):
  metrics = pytest.importorskip('sklearn.metrics', reason='extra [parity]')
  draw = np.random.default_rng(len(absent))
  classes = [c for c in range(5) if c not in absent]
  right, guessed = draw.choice(classes, 300), draw.choice(classes, 300)
  guessed = np.where(draw.random(300) < 0.5, right, guessed)
  found = numbers(right, guessed, tuple('abcde'))
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    each = metrics.precision_recall_fscore_support(
      right, guessed, labels=range(5), zero_division=0
    )
    macro = metrics.precision_recall_fscore_support(right, guessed, average='macro')
  for name, one, mean in zip(('precision', 'recall', 'f1'), each, macro, strict=False):
    assert found[name] == pytest.approx(mean)
    assert [found[f'{name}/{c}'] for c in 'abcde'] == pytest.approx(one.tolist())
  assert found['accuracy'] == pytest.approx(metrics.accuracy_score(right, guessed))
  table = _confusion.confusion(right, guessed, 5, np.ones(300))
  np.testing.assert_array_equal(
    table, metrics.confusion_matrix(right, guessed, labels=range(5))
  )


def test_counts_are_copies_of_examples():
  draw = np.random.default_rng(3)
  right, guessed, counts = draw.integers(3, size=(3, 40))
  scores = _confusion.scores(right, guessed, ('a', 'b', 'c'))
  copies = np.repeat(right, counts), np.repeat(guessed, counts)
  want = _scores.numbers(_confusion.scores(*copies, ('a', 'b', 'c')))
  for name, score in scores.numbers.items():
    assert score(counts.astype(float)) == pytest.approx(want[name])
