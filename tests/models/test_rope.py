"""Rotations: what they keep, and what the ways to scale them promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.models import rope


def turned(x, positions, scaling=None):
  cos, sin = rope.tables(positions, x.shape[-1], 100.0, scaling)
  return rope.rotate(x, cos, sin)


@pytest.mark.parametrize('scaling', [None, dict(kind='ntk', factor=3.0)])
def test_scores_depend_on_distance_alone(scaling):
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

  def score(i, j):
    a, b = (turned(x, jnp.array([[n]]), scaling) for x, n in ((q, i), (k, j)))
    return float(jnp.sum(a * b))

  assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
  assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)
  assert score(0, 0) == pytest.approx(float(jnp.sum(q * k)), abs=1e-5)


def test_ntk_keeps_the_fastest_pair_and_slows_the_slowest():
  plain, _ = rope.frequencies(16, 1e4)
  ntk, factor = rope.frequencies(16, 1e4, dict(kind='ntk', factor=4.0))
  assert (ntk[0], factor) == (plain[0], 1.0)
  assert ntk[-1] == pytest.approx(plain[-1] / 4, rel=1e-5)
  assert np.all(np.diff(plain / ntk) > 0)


def test_yarn_and_llama3_lie_between_plain_and_linear():
  plain, _ = rope.frequencies(64, 1e4)
  for kind in ('yarn', 'llama3'):
    mixed, _ = rope.frequencies(64, 1e4, dict(kind=kind, factor=8.0, length=256))
    assert mixed[0] == plain[0]
    assert mixed[-1] == pytest.approx(plain[-1] / 8)
    assert np.all((mixed <= plain * 1.000001) & (mixed >= plain / 8.000001))


def test_sinusoids_are_the_papers():
  table = np.asarray(rope.sinusoids(jnp.array([[0, 5]]), 6))
  want = [f(5 / 10_000 ** (2 * i / 6)) for i in range(3) for f in (np.sin, np.cos)]
  np.testing.assert_allclose(table[0, 1], want, atol=1e-6)
  np.testing.assert_allclose(table[0, 0], [0, 1, 0, 1, 0, 1])
