"""Corpus scores and their intervals, against what they are meant to be."""

import math

import numpy as np
import pytest

from gptjax.evals import _scores
from gptjax.words import Mistake, Scores
from tests.evals.fakes import Talks


def test_an_interval_is_that_of_the_mean():
  values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
  scores = Scores(2000, {'mean': _scores.mean(values)})
  (low, high) = _scores.intervals(scores)['mean']
  assert _scores.numbers(scores)['mean'] == pytest.approx(values.mean())
  half = 1.96 * values.std() / math.sqrt(2000)
  assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
  assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_about_95_of_100_intervals_hold_the_truth():
  draw = np.random.default_rng(1)
  held = 0
  for _ in range(200):
    scores = Scores(100, {'mean': _scores.mean(draw.random(100) < 0.3)})
    low, high = _scores.intervals(scores, samples=200)['mean']
    held += low <= 0.3 <= high
  assert 0.90 <= held / 200 <= 0.985


def test_they_are_seeded():
  scores = Scores(50, {'mean': _scores.mean(np.arange(50) % 7)})
  assert _scores.intervals(scores) == _scores.intervals(scores)
  assert _scores.intervals(scores) != _scores.intervals(scores, seed=1)


def test_no_spread_and_no_value():
  scores = Scores(
    2,
    {
      'same': _scores.mean([4, 4]),
      'never': lambda counts: math.nan,
      'sometimes': lambda counts: 1.0 if counts[0] else math.nan,
    },
  )
  found = _scores.intervals(scores)
  assert found['same'] == (4, 4)
  assert found['sometimes'] == (1, 1)
  assert all(map(math.isnan, found['never']))


def test_the_first_examples_are_a_task_of_their_own():
  task = Talks([('a', ['b']), ('c', ['d']), ('e', ['f'])], labels=('x',))
  part = _scores.first(task, 2)
  assert len(part) == 2
  assert part.example(1) == task.example(1)
  assert part.labels == ('x',)
  assert part.digest != task.digest
  assert len(_scores.first(task, 9)) == 3
  assert _scores.first(task, None) is task
  with pytest.raises(Mistake, match='limit=0'):
    _scores.first(task, 0)
