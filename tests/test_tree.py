"""Selection by pattern over stacked layers."""

import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import tree
from gptjax.words import Mistake

TREE = {
  'embed': {'tokens': jnp.zeros((8, 4))},
  'layers': {
    '0:4:2': {
      'mlp': {'up': jnp.zeros((2, 4, 6))},
      'norm': {'scale': jnp.zeros((2, 4))},
    },
    '1:4:2': {
      'mlp': {'up': jnp.zeros((2, 4, 6))},
      'norm': {'scale': jnp.zeros((2, 4))},
    },
  },
}
UP = 'layers/{}/mlp/up'


def select(patterns, **options):
  return tree.paths(tree.select(TREE, patterns, 'c.optim.rates', **options))


def test_the_first_pattern_wins_and_the_rest_take_the_default():
  found = select({'scale': 0.5, 'layers/*': 2.0}, default=lambda path: len(path))
  assert found['layers/0:4:2/norm/scale'] == 0.5
  assert found[UP.format('1:4:2')] == 2.0
  assert found['embed/tokens'] == len('embed/tokens')


def test_a_pattern_for_one_layer_gives_a_value_for_each_repeat():
  found = select({'layers/2/*': 0.1, 'layers/1/*': 3}, default=lambda path: 1.0)
  up = found[UP.format('0:4:2')]
  np.testing.assert_array_equal(up, np.float32([1.0, 0.1]).reshape(2, 1, 1))
  assert found['layers/0:4:2/norm/scale'].shape == (2, 1)
  np.testing.assert_array_equal(found[UP.format('1:4:2')].ravel(), [3, 1])


def test_equal_values_of_all_layers_stay_one_number():
  found = select({'layers/0/*': 2.0, 'layers/*/mlp/*': 2.0}, default=lambda path: 2.0)
  assert found[UP.format('0:4:2')] == 2.0


@pytest.mark.parametrize('patterns', [['layers/2/*'], {'layers/2/mlp/*': 'half'}])
def test_only_numbers_may_differ_between_the_layers_of_a_leaf(patterns):
  with pytest.raises(Mistake, match=r'splits the stacked leaf .* 1 of 2 layers'):
    select(patterns)
  with pytest.raises(Mistake, match='splits the stacked leaf'):
    tree.matches(UP.format('0:4:2'), 'layers/2/*')


def test_every_pattern_must_match_even_one_that_another_hides():
  found = select({'layers/*': 1, 'layers/3/*': 2}, default=lambda path: 0)
  assert found[UP.format('1:4:2')] == 1
  with pytest.raises(
    Mistake, match=r"c.optim.rates: no leaf matches \['layers/4/\*'\]"
  ):
    select({'layers/4/*': 2.0}, default=lambda path: 1.0)
