"""The chunked loss against whole logits, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax import sharding
from gptjax.models.loss import cross_entropy, token_nats

B, T, D, V, PADDED = 4, 50, 16, 65, 128


def head(params, hidden):
  """Tied to a table, with padded ids; `other` is not read."""
  logits = jnp.einsum('...D,VD->...V', hidden, params['table'])
  used = jnp.arange(PADDED).reshape((1,) * (logits.ndim - 1) + (-1,)) < V
  return jnp.where(used, logits, -jnp.inf)


@pytest.fixture(scope='module')
def data():
  rng = np.random.default_rng(0)
  params = dict(
    table=jnp.asarray(rng.normal(size=(PADDED, D)), jnp.float32),
    other=jnp.ones((300, 300)),
  )
  hidden = jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32)
  targets = jnp.asarray(rng.integers(0, V, (B, T)))
  weights = jnp.asarray(rng.random((B, T)) * (rng.random((B, T)) < 0.7), jnp.float32)
  return params, hidden, targets, weights


def whole(params, hidden, targets, weights, z_loss, smoothing):
  logits = head(params, hidden)[..., :V]
  wanted = optax.smooth_labels(jax.nn.one_hot(targets, V), smoothing)
  nats = optax.softmax_cross_entropy(logits, wanted)
  return jnp.sum(weights * (nats + z_loss * jax.nn.logsumexp(logits, -1) ** 2))


def chunked(params, hidden, targets, weights, z_loss=0.0, smoothing=0.0, chunk=1024):
  return cross_entropy(
    functools.partial(head, params),
    hidden,
    targets,
    weights,
    z_loss=z_loss,
    smoothing=smoothing,
    chunk=chunk,
  ).total


def close(found, wanted):
  for f, w in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(f, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('chunk', [1, 60, 10_000])
@pytest.mark.parametrize(('z_loss', 'smoothing'), [(0.0, 0.0), (1e-3, 0.1)])
def test_total_and_gradients_equal_whole_logits(data, chunk, z_loss, smoothing):
  params, hidden, targets, weights = data
  kinds = dict(z_loss=z_loss, smoothing=smoothing)
  slope = functools.partial(jax.value_and_grad, argnums=(0, 1))
  wanted = slope(functools.partial(whole, **kinds))(params, hidden, targets, weights)
  one = functools.partial(chunked, chunk=chunk, **kinds)
  close(jax.jit(slope(one))(params, hidden, targets, weights), wanted)
  close(one(params, hidden, targets, weights), wanted[0])  # Not differentiated.


def test_gradients_follow_the_cotangent(data):
  params, hidden, targets, weights = data
  scaled = jax.grad(lambda p: -3 * chunked(p, hidden, targets, weights) ** 2)
  plain = jax.grad(lambda p: chunked(p, hidden, targets, weights))
  factor = -6 * chunked(params, hidden, targets, weights)
  close(scaled(params), jax.tree.map(lambda g: g * factor, plain(params)))


def test_nats_and_correct(data):
  params, hidden, targets, weights = data
  loss = cross_entropy(
    functools.partial(head, params), hidden, targets, weights, smoothing=0.3, chunk=30
  )
  logits = head(params, hidden)
  nats = optax.softmax_cross_entropy_with_integer_labels(logits[..., :V], targets)
  np.testing.assert_allclose(loss.nats, nats, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(loss.correct, logits.argmax(-1) == targets)


def test_no_weight_at_all_is_zero_with_zero_gradients(data):
  params, hidden, targets, weights = data
  value, grads = jax.value_and_grad(chunked)(params, hidden, targets, 0 * weights)
  assert value == 0
  assert all(jnp.all(g == 0) for g in jax.tree.leaves(grads))


def test_token_nats_have_gradients_of_their_own(data):
  params, hidden, targets, weights = data

  def wanted(params, hidden):
    logits = head(params, hidden)[..., :V]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(jnp.sin(nats) * weights)

  def found(params, hidden):
    nats = token_nats(functools.partial(head, params), hidden, targets, chunk=17)
    return jnp.sum(jnp.sin(nats) * weights)

  slope = functools.partial(jax.value_and_grad, argnums=(0, 1))
  close(slope(found)(params, hidden), slope(wanted)(params, hidden))


def test_bfloat16_logits_are_summed_in_float32(data):
  params, hidden, targets, weights = data
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, hidden))
  exact = jax.tree.map(lambda x: x.astype(jnp.float32), half)
  found = jax.value_and_grad(chunked)(*half, targets, weights)
  wanted = jax.value_and_grad(chunked)(*exact, targets, weights)
  assert found[0].dtype == jnp.float32
  assert found[1]['table'].dtype == jnp.bfloat16
  np.testing.assert_allclose(found[0], wanted[0], rtol=5e-3)


BIG = dict(T=512, V=8192)  # Whole logits: 16 MiB a row.


def memory(function, *shapes):
  structs = [jax.ShapeDtypeStruct(s, d) for s, d in shapes]
  compiled = jax.jit(function).lower(*structs).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize('kind', ['total', 'each'])
def test_whole_logits_never_exist(kind):
  T, V = BIG['T'], BIG['V']

  def total(table, hidden, targets):
    head = lambda h: jnp.einsum('BTD,VD->BTV', h, table)  # noqa: E731
    if kind == 'each':
      return jnp.sum(jnp.sin(token_nats(head, hidden, targets, chunk=64)))
    ones = jnp.ones(targets.shape)
    return cross_entropy(head, hidden, targets, ones, chunk=64).total

  f, i = jnp.float32, jnp.int32
  used = memory(jax.grad(total, (0, 1)), ((V, D), f), ((4, T, D), f), ((4, T), i))
  assert used < 0.3 * 4 * (4 * T * V), used


def test_frozen_leaves_of_the_head_cost_no_gradient():
  """With a frozen table the second product of a chunk is not made."""

  def flops(argnums):
    def total(table, hidden, targets):
      head = lambda h: jnp.einsum('BTD,VD->BTV', h, table)  # noqa: E731
      ones = jnp.ones(targets.shape)
      return cross_entropy(head, hidden, targets, ones, chunk=10_000).total

    shapes = (
      ((512, 256), jnp.float32),
      ((2, 64, 256), jnp.float32),
      ((2, 64), jnp.int32),
    )
    structs = [jax.ShapeDtypeStruct(s, d) for s, d in shapes]
    compiled = jax.jit(jax.grad(total, argnums)).lower(*structs).compile()
    return compiled.cost_analysis()['flops']

  product = 2 * 512 * 256 * 128
  assert flops((0, 1)) > 3 * product
  assert flops((1,)) < 2.5 * product


def test_on_a_mesh(data):
  """Rows over 4 devices and the vocabulary over 2: the same numbers."""
  params, hidden, targets, weights = data
  slope = jax.value_and_grad(chunked, argnums=(0, 1))
  wanted = slope(params, hidden, targets, weights)
  with sharding.use(sharding.make_mesh(dict(data=4, tensor=2))):

    def run(params, hidden, targets, weights):
      table = sharding.shard(params['table'], 'vocab', 'embed')
      hidden = sharding.shard(hidden, 'batch', 'length', None)
      return slope(dict(params, table=table), hidden, targets, weights, chunk=17)

    found = jax.jit(run)(params, hidden, targets, weights)
  close(found, wanted)
