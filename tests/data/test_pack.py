import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data import pack
from gptjax.words import Mistake

LENGTHS = st.lists(st.integers(1, 70), max_size=60)


def batch_of(lengths, length, packing):
  """All rows, from documents whose ids are all different."""
  plan = pack.plan(np.array(lengths, np.int64), length, packing)
  starts = np.cumsum([0] + [n + 1 for n in lengths])
  docs = [np.arange(a, b) for a, b in itertools.pairwise(starts)]
  ids = [
    docs[d][a : b + 1]
    for d, a, b in zip(plan.document, plan.start, plan.stop, strict=True)
  ]
  return docs, plan, pack.fill(ids, np.diff(plan.first), length)


@given(lengths=LENGTHS, length=st.integers(1, 33))
@pytest.mark.parametrize('packing', ['concat', 'best_fit'])
@settings(max_examples=150, deadline=None)
def test_each_pair_once_and_segments_whole(packing, lengths, length):
  docs, plan, batch = batch_of(lengths, length, packing)
  assert batch['tokens'].shape == (plan.rows, length)
  pairs = []
  for row in range(plan.rows):
    segments = batch['segments'][row]
    real = segments > 0
    assert (batch['weights'][row] == real).all()
    # Padding lies at the end, segments are 1, 2, ... from left to right.
    steps = np.diff(segments[real])
    assert real[: real.sum()].all()
    assert real.any()
    assert segments[0] == 1
    assert ((steps == 0) | (steps == 1)).all()
    for n in np.unique(segments[real]):
      mine = segments == n
      inputs, targets = batch['tokens'][row][mine], batch['targets'][row][mine]
      # One run of one document: each target is the next id of the same document.
      assert (np.diff(inputs) == 1).all()
      assert (targets == inputs + 1).all()
      assert batch['positions'][row][mine].tolist() == list(range(mine.sum()))
      pairs += list(zip(inputs.tolist(), targets.tolist(), strict=True))
  wanted = [(i, i + 1) for doc in docs for i in doc[:-1].tolist()]
  assert sorted(pairs) == wanted


@given(lengths=LENGTHS.filter(len), length=st.integers(1, 33))
@settings(max_examples=100, deadline=None)
def test_concat_pads_only_the_last_row(lengths, length):
  _, plan, batch = batch_of(lengths, length, 'concat')
  assert plan.rows == -(-sum(lengths) // length)
  assert (batch['segments'][:-1] > 0).all()


@given(lengths=LENGTHS, length=st.integers(1, 33))
@settings(max_examples=100, deadline=None)
def test_best_fit_cuts_only_what_must_be_cut_and_fits_best(lengths, length):
  plan = pack.best_fit(np.array(lengths, np.int64), length)
  for document, start, stop in zip(plan.document, plan.start, plan.stop, strict=True):
    assert start % length == 0
    assert stop == min(start + length, lengths[document])
  # The same sizes by the textbook: the fullest row that has room.
  sizes = sorted((plan.stop - plan.start).tolist(), reverse=True)
  free = []
  for size in sizes:
    fits = [n for n, room in enumerate(free) if room >= size]
    if fits:
      free[min(fits, key=lambda n: free[n])] -= size
    else:
      free.append(length - size)
  used = np.add.reduceat(plan.stop - plan.start, plan.first[:-1]) if plan.rows else []
  assert sorted(length - u for u in used) == sorted(free)


def test_an_empty_row_is_all_padding():
  batch = pack.fill([np.array([5, 6, 7])], np.array([0, 1]), 3)
  assert batch['tokens'].tolist() == [[0, 0, 0], [5, 6, 0]]
  assert batch['targets'].tolist() == [[0, 0, 0], [6, 7, 0]]
  assert batch['weights'].tolist() == [[0, 0, 0], [1, 1, 0]]
  assert batch['segments'].tolist() == [[0, 0, 0], [1, 1, 0]]
  assert {k: v.dtype.name for k, v in batch.items()} == {
    'tokens': 'int32',
    'targets': 'int32',
    'weights': 'float32',
    'positions': 'int32',
    'segments': 'int32',
  }


def test_ids_above_int16_and_of_mixed_types_survive():
  ids = [np.array([65_535, 1], np.uint16), np.array([200_000, 7], np.uint32)]
  batch = pack.fill(ids, np.array([2]), 3)
  assert batch['tokens'].tolist() == [[65_535, 200_000, 0]]


@pytest.mark.parametrize(('length', 'packing'), [(0, 'concat'), (8, 'bestfit')])
def test_mistakes(length, packing):
  with pytest.raises(Mistake, match=r'c\.mixture\.(length|packing)'):
    pack.plan(np.array([3]), length, packing)
