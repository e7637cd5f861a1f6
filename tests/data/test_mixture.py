import math

import numpy as np
import pytest

from gptjax.data import mixture
from gptjax.words import Mistake


def make(sizes, shares, seed=0):
  return mixture.make_mixture(sizes, shares, seed)


def test_proportions_hold_in_every_window():
  shares = {'a': 0.61, 'b': 0.3, 'c': 0.08, 'd': 0.01}
  m = make({'a': 1000, 'b': 77, 'c': 5, 'd': 10**9}, shares)
  task, _, _ = mixture.draw(m, np.arange(200_000))
  for start in (0, 1, 4095, 60_000, 65_000, 130_001):
    for size in (100, 2048, 30_000):
      counts = np.bincount(task[start : start + size], minlength=4)
      exact = np.array(list(shares.values())) * size
      assert np.abs(counts - exact).max() <= 2.5 + size / 20_000, (start, size)


def test_each_epoch_has_every_document_once_in_a_new_order():
  m = make({'a': 37, 'b': 11}, {'a': 3.0, 'b': 1.0})
  task, epoch, index = mixture.draw(m, np.arange(2000))
  for t, size in enumerate((37, 11)):
    mine_epoch, mine = epoch[task == t], index[task == t]
    orders = [mine[mine_epoch == e].tolist() for e in range(mine_epoch.max())]
    assert len(orders) > 5
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders)


def test_random_access_equals_the_stream():
  m = make({'a': 1000, 'b': 123_456}, {'a': 1.0, 'b': 2.0}, seed=5)
  whole = mixture.draw(m, np.arange(500_000))
  at = np.array([499_999, 3, 70_000, 3, 131_071])
  for one, all_ in zip(mixture.draw(m, at), whole, strict=True):
    assert one.tolist() == all_[at].tolist()
  for items in (0, 1, 65_536, 200_001):
    counted = np.bincount(whole[0][:items], minlength=2)
    assert mixture.drawn(m, items).tolist() == counted.tolist()


def test_seed_and_name_decide_the_order():
  def order(name, seed):
    m = make({name: 100}, {name: 1.0}, seed)
    return mixture.draw(m, np.arange(100))[2].tolist()

  assert order('a', 0) == order('a', 0)
  assert len({tuple(order(n, s)) for n in 'ab' for s in range(3)}) == 6


@pytest.mark.parametrize('size', [1, 2, 3, 4, 7, 16, 17, 100, 1000, 65_537])
def test_shuffle_is_a_permutation(size):
  assert sorted(mixture.shuffle(np.arange(size), size, 123)) == list(range(size))


def test_shuffle_is_even():
  # Where each of 12 items lands over 6,000 keys: chi-square of 144 cells.
  size, keys = 12, 6000
  key = mixture.mix(np.arange(keys, dtype=np.uint64))
  places = mixture.shuffle(np.tile(np.arange(size), keys), size, np.repeat(key, size))
  table = np.zeros((size, size))
  np.add.at(table, (np.tile(np.arange(size), keys), places), 1)
  chi = ((table - keys / size) ** 2 / (keys / size)).sum()
  free = (size - 1) ** 2
  assert abs(chi - free) < 5 * math.sqrt(2 * free)
  # Neighbours do not stay neighbours more often than chance.
  big = mixture.shuffle(np.arange(10_000), 10_000, 9)
  assert (np.abs(np.diff(big)) == 1).sum() < 20
  assert abs(np.corrcoef(np.arange(10_000), big)[0, 1]) < 0.05


@pytest.mark.parametrize(
  'weight', [0, -1.0, float('nan'), float('inf'), '1', None, True]
)
def test_bad_weights(weight):
  with pytest.raises(Mistake, match=r'c\.mixture\.tasks\.a\.weight'):
    make({'a': 10}, {'a': weight})


def test_a_tiny_share_is_still_drawn():
  m = make({'a': 10, 'b': 10}, {'a': 1.0, 'b': 1e-9})
  assert mixture.drawn(m, mixture.PERIOD).tolist() == [mixture.PERIOD - 1, 1]


SIZES = {'a': 100, 'b': 300, 'c': 600}


def shares(weights, **settings):
  found = mixture.make_weights(weights, SIZES, **settings)
  total = sum(found.values())
  return {name: weight / total for name, weight in found.items()}


def test_without_weights_shares_are_sizes_times_epochs():
  none = dict.fromkeys(SIZES)
  assert shares(none) == pytest.approx({'a': 0.1, 'b': 0.3, 'c': 0.6})
  twice = shares(none, epochs={'a': 2.0})
  assert twice == pytest.approx({'a': 2 / 11, 'b': 3 / 11, 'c': 6 / 11})
  assert mixture.make_weights({'a': None}, SIZES) == {'a': 1.0}


def test_weights_are_left_as_they_are():
  weights = {'a': 3.0, 'b': 1.0, 'c': 0.5}
  assert mixture.make_weights(weights, SIZES) == weights


def test_a_temperature_evens_shares_out():
  none = dict.fromkeys(SIZES)
  roots = np.sqrt([0.1, 0.3, 0.6])
  expected = dict(zip(SIZES, roots / roots.sum(), strict=True))
  assert shares(none, temperature=2.0) == pytest.approx(expected)
  assert shares({'a': 1.0, 'b': 3.0, 'c': 6.0}, temperature=2.0) == pytest.approx(
    expected
  )
  even = shares(none, temperature=1e9)
  assert even == pytest.approx(dict.fromkeys(SIZES, 1 / 3))


@pytest.mark.parametrize(
  ('weights', 'settings', 'line'),
  [
    ({'a': 1.0, 'b': None}, {}, 'tasks.b has no weight and a has one'),
    ({'a': 1.0}, dict(epochs={'a': 2}), 'tasks.a: weight or epochs, not both'),
    ({'a': None}, dict(epochs={'a': 0}), r'tasks\.a\.epochs=0'),
    ({'a': None}, dict(epochs={'a': float('inf')}), r'tasks\.a\.epochs=inf'),
    ({'a': 1.0}, dict(temperature=0), r'c\.mixture\.temperature=0'),
    ({'a': 1.0}, dict(temperature='x'), r'c\.mixture\.temperature='),
  ],
)
def test_mistakes_of_weights(weights, settings, line):
  with pytest.raises(Mistake, match=line):
    mixture.make_weights(weights, SIZES, **settings)
