"""linear against einsum, in the CPU's form and the plain one, and its other weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import sharding
from gptjax.models.layers import unstack
from gptjax.models.linear import Int8, Lora, linear, quantise, rows

SHAPES = dict(B=2, T=3, D=8, H=4, K=5, F=7, V=9, r=2)
PRODUCTS = [
  'BTD,DHK->BTHK',
  'BTHK,HKD->BTD',
  'BTD,DF->BTF',
  '...D,VD->...V',
  '...D,DV->...V',
]


def draw(letters, seed):
  shape = [SHAPES[c] for c in letters.replace('...', 'BT')]
  return jax.random.normal(jax.random.key(seed), shape)


def pair(eq):
  x, w = eq.split('->')[0].split(',')
  return draw(x, 0), draw(w, 1)


@pytest.fixture(params=['cpu', 'tpu'])
def platform(request):
  mesh = sharding.make_mesh(dict(data=1), jax.devices()[:1])
  with sharding.use(mesh, platform=request.param):
    yield request.param


@pytest.mark.parametrize('eq', PRODUCTS)
def test_products_and_their_gradients_are_einsums(eq, platform):
  x, w = pair(eq)
  oracle = lambda x, w: jnp.einsum(eq, x, w)  # noqa: E731
  got, pull = jax.vjp(lambda x, w: linear(x, w, eq), x, w)
  want, other = jax.vjp(oracle, x, w)
  np.testing.assert_allclose(got, want, atol=1e-5)
  for a, b in zip(pull(jnp.cos(want)), other(jnp.cos(want)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_only_a_cpu_gets_the_flat_form(platform):
  x, w = pair(PRODUCTS[0])
  text = str(jax.make_jaxpr(lambda x, w: linear(x, w, PRODUCTS[0]))(x, w))
  assert ('reshape' in text) == (platform == 'cpu')


def test_bias_and_dtype(platform):
  x, w = pair(PRODUCTS[0])
  half = x.astype(jnp.bfloat16)
  bias = draw('HK', 2)
  y = linear(half, w, PRODUCTS[0], bias)
  assert y.dtype == jnp.bfloat16
  want = jnp.einsum(PRODUCTS[0], x, w) + bias[None, None]
  np.testing.assert_allclose(y.astype(jnp.float32), want, atol=0.1)
  logits = linear(half, w, PRODUCTS[0], dtype=jnp.float32)
  exact = jnp.einsum(PRODUCTS[0], half.astype(jnp.float32), w.astype(jnp.bfloat16))
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, exact, atol=1e-5)


@pytest.mark.parametrize('eq', PRODUCTS)
def test_lora_adds_its_product(eq, platform):
  x, w = pair(eq)
  xs, ws = eq.split('->')[0].split(',')
  inner = ''.join(c for c in ws if c in xs)
  outer = ''.join(c for c in ws if c not in xs)
  a, b = draw(f'{inner}r', 3), draw(f'r{outer}', 4)
  want = jnp.einsum(eq, x, w + 0.5 * jnp.einsum(f'{inner}r,r{outer}->{ws}', a, b))
  np.testing.assert_allclose(linear(x, Lora(w, a, b, scale=0.5), eq), want, atol=1e-4)


def test_a_frozen_weight_under_lora_has_no_gradient_product():
  x, w = jnp.ones((64, 256)), jnp.ones((256, 256))
  a, b = jnp.ones((256, 4)), jnp.ones((4, 256))

  def loss(x, pair):
    return jnp.sum(linear(x, Lora(w, *pair), 'BD,DF->BF') ** 2)

  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, (a, b)).compile()
  whole = 2 * 64 * 256 * 256
  assert compiled.cost_analysis()['flops'] < 2.5 * whole  # Forward and dx, no dw.


@pytest.mark.parametrize('eq', PRODUCTS)
def test_int8_is_near(eq, platform):
  x, w = pair(eq)
  small = quantise(w, eq)
  assert isinstance(small, Int8)
  assert small.values.dtype == jnp.int8
  want = np.asarray(jnp.einsum(eq, x, w))
  got = np.asarray(linear(x, small, eq))
  assert np.abs(got - want).max() < 0.02 * np.abs(want).max()
  assert np.abs(got - want).max() > 0


def test_rows_of_a_table():
  table = draw('VD', 0)
  index = jnp.array([[3, 0], [8, 3]])
  np.testing.assert_array_equal(rows(table, index, jnp.float32), table[index])
  small = rows(quantise(table, '...D,VD->...V'), index, jnp.float32)
  np.testing.assert_allclose(small, table[index], atol=0.02)


def test_unstack_gives_back_one_stacked_gradient():
  x = draw('HDK', 0)
  weigh = lambda pieces: sum(jnp.sum(p**2 * (i + 1)) for i, p in enumerate(pieces))  # noqa: E731
  got = jax.grad(lambda x: weigh(unstack(x)))(x)
  np.testing.assert_allclose(got, jax.grad(lambda x: weigh(list(x)))(x))
  assert ' pad' not in str(jax.make_jaxpr(jax.grad(lambda x: weigh(unstack(x))))(x))
