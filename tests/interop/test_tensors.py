"""Letters say how a tensor of theirs is ours: against the transpositions by hand."""

import numpy as np
import pytest

from gptjax.interop.families import FAMILIES
from gptjax.interop.gguf_models import SHAPES
from gptjax.interop.tensors import (
  LEAVES,
  Place,
  Row,
  places,
  sizes,
  tensor_shape,
  to_ours,
  to_theirs,
)
from gptjax.models.settings import make_settings
from gptjax.words import Mistake

C = make_settings(
  'llama', dict(vocab=31, layers=2, embed=6, heads=4, kv_heads=2, head=10, mlp=7)
)
D, H, G, K = 6, 4, 2, 10


def draw(*shape):
  return np.random.default_rng(0).standard_normal(shape)


def read(row, array, part=0):
  return to_ours(array, Place('x', row, part), sizes(C))


def test_a_linear_weight_is_transposed():
  row = Row('x', 'layers/{}/attention/query', 'HK D')
  w = draw(H * K, D)
  want = w.T.reshape(D, H, K)
  np.testing.assert_array_equal(read(row, w), want)
  np.testing.assert_array_equal(to_theirs([want], row, sizes(C)), w)


def test_what_is_joined_is_taken_apart_and_joined():
  for axes, axis in (('D HK|GK|GK', 1), ('HK|GK|GK D', 0)):
    row = Row('x', 'layers/{}/attention/query|key|value', axes)
    assert row.leaves[1] == 'layers/{}/attention/key'
    shape = [D, D]
    shape[axis] = (H + G + G) * K
    assert tensor_shape(row, sizes(C)) == tuple(shape)
    w = draw(*shape)
    q, k, v = np.split(w, [H * K, (H + G) * K], axis)
    parts = [read(row, w, part) for part in range(3)]
    for got, want, heads in zip(parts, (q, k, v), (H, G, G), strict=True):
      want = want if axis else want.T
      np.testing.assert_array_equal(got, want.reshape(D, heads, K))
    np.testing.assert_array_equal(to_theirs(parts, row, sizes(C)), w)


def test_interleaved_halves_of_a_head():
  """As llama.cpp's converter permutes queries: [H, 2, K/2] -> [H, K/2, 2]."""
  row = Row('x', 'layers/{}/attention/key', 'GJP D')
  plain = draw(G * K, D)
  permuted = plain.reshape(G, 2, K // 2, D).swapaxes(1, 2).reshape(G * K, D)
  np.testing.assert_array_equal(read(row, permuted), plain.T.reshape(D, G, K))
  back = to_theirs([plain.T.reshape(D, G, K)], row, sizes(C))
  np.testing.assert_array_equal(back, permuted)


def test_the_padding_of_the_vocabulary_is_left_out():
  row = Row('x', 'heads/lm', 'V D')
  padded = np.pad(draw(D, 31), [(0, 0), (0, 97)], constant_values=9)
  np.testing.assert_array_equal(to_theirs([padded], row, sizes(C)), padded[:, :31].T)


def test_a_leaf_without_a_row_has_no_place():
  with pytest.raises(Mistake, match='mlp/gate has no place'):
    places(FAMILIES['gpt2'].rows, {'layers': {'0:2:1': {'mlp': {'gate': draw(2)}}}})


@pytest.mark.parametrize('name', [*FAMILIES, *SHAPES])
def test_tables_are_one_to_one_and_of_known_leaves(name):
  for table in (FAMILIES, SHAPES):
    if name not in table:
      continue
    rows = table[name].rows
    names = [row.theirs for row in rows]
    leaves = [leaf for row in rows for leaf in row.leaves]
    assert len(set(names)) == len(names)
    assert len(set(leaves)) == len(leaves)
    for row in rows:
      assert row.theirs.count('{}') == row.ours.count('{}')
      for leaf, part in zip(row.leaves, row.parts, strict=True):
        own = LEAVES.get(leaf.replace('layers/{}/', ''), 'D').replace('K', 'PJ')
        theirs = part.replace(' ', '').replace('K', 'PJ')
        assert sorted(own) == sorted(theirs), row
