"""Splits: a document never moves, copies stay together, positions are exact."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.sources.records import Records
from gptjax.tasks import split as splitting
from gptjax.words import Mistake

texts = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=60)
shares = st.fixed_dictionaries(
  {'val': st.sampled_from([0.0, 0.05, 0.3]), 'test': st.sampled_from([0.0, 0.1, 0.4])}
)


def surveyed(documents):
  data = [d.encode(errors='replace') for d in documents]
  records = Records(len(data), lambda i: {}, str, '')
  return splitting.survey(records, data.__getitem__, 'error')


def sides(documents, fractions, by='hash'):
  """The split of every document, by name."""
  found, side = surveyed(documents), [None] * len(documents)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(splitting, 'FEWEST', 0)
    for name in ('train', 'val', 'test'):
      try:
        chosen = splitting.choose(found, name, fractions, by, 'x', 'cure')
      except Mistake:  # Off, or empty.
        continue
      for i in np.flatnonzero(chosen):
        assert side[i] is None, 'in two splits'
        side[i] = name
  assert None not in side, 'in no split'
  return side


@settings(deadline=None)
@given(documents=texts, added=texts, fractions=shares, seed=st.randoms())
def test_a_document_never_moves(documents, added, fractions, seed):
  before = dict(zip(documents, sides(documents, fractions), strict=True))
  more = documents + added
  seed.shuffle(more)
  after = sides(more, fractions)
  for document, side in zip(more, after, strict=True):
    assert before.get(document, side) == side


@given(documents=texts, fractions=shares)
def test_the_side_is_the_hash_and_copies_stay_together(documents, fractions):
  for document, side in zip(documents, sides(documents, fractions), strict=True):
    data = document.encode(errors='replace')
    part = int.from_bytes(hashlib.sha256(data).digest()[:8], 'big') / 2**64
    val, test = part < fractions['val'], part >= 1 - fractions['test']
    assert side == ('val' if val else 'test' if test else 'train')


def test_val_does_not_depend_on_the_size_of_test():
  documents = [str(i) for i in range(2000)]
  small = sides(documents, {'val': 0.05, 'test': 0.05})
  large = sides(documents, {'val': 0.05, 'test': 0.5})
  assert [s == 'val' for s in small] == [s == 'val' for s in large]
  assert abs(small.count('val') - 100) < 40
  assert abs(small.count('test') - 100) < 40


@given(documents=texts, fractions=shares)
def test_by_position_is_in_order(documents, fractions):
  side = sides(documents, fractions, 'position')
  order = ['train', 'val', 'test']
  assert side == sorted(side, key=order.index)
  sizes = [len(d.encode(errors='replace')) for d in documents]
  before = np.cumsum([0, *sizes])[:-1]
  cut = int(sum(sizes) * (1 - fractions['val'] - fractions['test']))
  assert [s == 'train' for s in side] == [b < cut for b in before]


@given(text=st.text(max_size=40), fractions=shares)
def test_the_parts_of_one_text_are_the_text(text, fractions):
  text = text.encode(errors='replace').decode()
  bounds = splitting.bounds(len(text.encode()), fractions)
  parts = [splitting.cut_text(text, *bounds[s]) for s in ('train', 'val', 'test')]
  assert ''.join(parts) == text
  assert splitting.cut_text(text, *bounds['all']) == text


def test_under_ten_documents_names_the_cure():
  found = surveyed([str(i) for i in range(30)])
  fractions = splitting.fractions(None)
  with pytest.raises(Mistake) as error:
    splitting.choose(found, 'val', fractions, 'hash', 'my.txt', "try by='position'")
  assert 'of at least 10' in str(error.value)
  assert "try by='position'" in str(error.value)


def test_fractions():
  assert splitting.fractions(None) == {'val': 0.05, 'test': 0.05}
  assert splitting.fractions({'val': 0.1}) == {'val': 0.1, 'test': 0.05}
  table = {
    'train is the rest': {'train': 0.9},
    "did you mean 'val'": {'vall': 0.1},
    'a fraction such as': {'val': -0.1},
    "splits.test='5%'": {'test': '5%'},
    'nan': {'val': float('nan')},
    'leave nothing for train': {'val': 0.5, 'test': 0.5},
  }
  for message, wrong in table.items():
    with pytest.raises(Mistake, match=message):
      splitting.fractions(wrong)
