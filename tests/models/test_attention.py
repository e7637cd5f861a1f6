"""Every form of attention against the plain one, forward and backward.

The GPU's kernel has a file of its own: test_attention_triton.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import sharding
from gptjax.models import attention_blockwise, attention_fused, attention_plain
from gptjax.models.attention import attention
from gptjax.words import Mistake


def alone(*values):
  """A feature by itself, to find what breaks: the rest of the cases hold it too."""
  return pytest.param(*values, marks=pytest.mark.slow)


# Name: (T, H, G, window, softcap, segments, causal).
CASES = {
  'causal': (96, 4, 4, None, None, False, True),
  'grouped': (97, 4, 2, None, None, False, True),
  'packed': (130, 2, 1, None, None, True, True),
  'window': (131, 2, 2, 20, None, False, True),
  'capped': (64, 2, 2, None, 5.0, False, True),
  'both ways': (70, 2, 2, None, None, False, False),
  'all': (97, 4, 2, 33, 5.0, True, True),
  'all both ways': (97, 4, 2, 17, 5.0, True, False),
}
FEW = ('grouped', 'both ways', 'all', 'all both ways')


def make(T, H, G, window, softcap, packed, causal, K=16, B=2):
  rng = np.random.default_rng(0)
  shapes = [(B, T, H, K), (B, T, G, K), (B, T, G, K), (B, T, H, K)]
  arrays = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]
  segments = None
  if packed:
    ids = jnp.asarray(np.sort(rng.integers(0, 4, (B, T))), jnp.int32)
    segments = (ids, ids)
  kinds = dict(causal=causal, window=window, softcap=softcap, scale=K**-0.5)
  return arrays, kinds, segments


def once(function, **given):
  """The function compiled for a run or two: compiling takes far longer than they do."""
  options = dict(
    xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True
  )
  return jax.jit(functools.partial(function, **given), compiler_options=options)


def results(function, q, k, v, w):
  """Output and the gradients of q, k and v."""

  def total(q, k, v):
    out = function(q, k, v)
    return jnp.sum(w * out), out

  grads, out = once(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v)
  return [out, *grads]


def by_hand(q, k, v, *, segments, causal, window, softcap, scale):
  """Query by query, key by key, in float64."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  B, T, H, _ = q.shape
  out = np.zeros_like(q)
  for b, t, h in np.ndindex(B, T, H):
    g = h // (H // k.shape[2])
    seen = [
      s
      for s in range(T)
      if (s <= t or not causal)
      and (window is None or abs(t - s) < window)
      and (segments is None or segments[0][b, t] == segments[1][b, s])
    ]
    scores = k[b, seen, g] @ q[b, t, h] * scale
    scores = softcap * np.tanh(scores / softcap) if softcap else scores
    p = np.exp(scores - scores.max())
    out[b, t, h] = (p / p.sum()) @ v[b, seen, g]
  return out


@functools.cache
def oracle(case, **shape):
  """Output and gradients of a case by the plain form."""
  arrays, kinds, segments = make(*case, **shape)
  return results(
    lambda q, k, v: attention(q, k, v, segments=segments, form='plain', **kinds),
    *arrays,
  )


@pytest.mark.parametrize(
  'case', [case if case in FEW else alone(case) for case in CASES]
)
def test_the_oracle_is_the_definition(case):
  _, H, G, window, *rest = CASES[case]
  (q, k, v, _), kinds, segments = make(21, H, G, window and 6, *rest, B=1)
  wanted = by_hand(q, k, v, segments=segments, **kinds)
  found = once(attention, segments=segments, form='plain', **kinds)(q, k, v)
  np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize(
  ('form', 'case'),
  # Blockwise is one block here: the next test has many.
  [('blockwise', 'grouped'), *(('cpu', case) for case in FEW)]
  + [alone('blockwise', case) for case in CASES if case != 'grouped']
  + [alone('cpu', case) for case in CASES if case not in FEW],
)
def test_forms_equal_the_oracle(form, case):
  arrays, kinds, segments = make(*CASES[case])
  found = results(
    lambda q, k, v: attention(q, k, v, segments=segments, form=form, **kinds),
    *arrays,
  )
  for f, w in zip(found, oracle(CASES[case]), strict=True):
    np.testing.assert_allclose(f, w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('case', [alone('grouped'), 'all', 'all both ways'])
def test_blocks_smaller_than_the_row(case):
  arrays, kinds, segments = make(*CASES[case])
  found = results(
    lambda q, k, v: attention_blockwise.blockwise(
      q, k, v, segments=segments, block=24, **kinds
    ),
    *arrays,
  )
  for f, w in zip(found, oracle(CASES[case]), strict=True):
    np.testing.assert_allclose(f, w, rtol=1e-5, atol=1e-5)


# Interpreted, the kernel is slow: few cases of many features.
@pytest.mark.parametrize(
  'case', [(256, 2, 1, 100, 5.0, True, True), (200, 2, 2, None, None, False, False)]
)
def test_splash_equals_the_oracle(case):
  arrays, kinds, segments = make(*case, K=64, B=1)
  found = results(
    lambda q, k, v: attention_fused.splash(
      q, k, v, segments=segments, interpret=True, **kinds
    ),
    *arrays,
  )
  for f, w in zip(found, oracle(case, K=64, B=1), strict=True):
    np.testing.assert_allclose(f, w, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize('T', [1, 5])
def test_a_cache_with_rows_of_unequal_length(T):
  """Slots beyond a row's length are not seen, whatever they hold."""
  S, lengths = 40, np.array([30, 7])
  (q, k, v, _), kinds, _ = make(S, 4, 2, None, None, False, True)
  positions = jnp.asarray(lengths[:, None] + np.arange(T)[None])
  q = jnp.stack([q[b, n : n + T] for b, n in enumerate(lengths)])
  wanted = []
  for b, n in enumerate(lengths):
    filled = np.concatenate([np.zeros((n, 4, 16)), q[b]])
    full = by_hand(
      filled[None], k[b : b + 1, : n + T], v[b : b + 1, : n + T], segments=None, **kinds
    )
    wanted.append(full[0, n:])
  spoilt = [np.array(x) for x in (k, v)]
  for x in spoilt:
    x[0, 30 + T :] = x[1, 7 + T :] = 1e6
  for form in (None, 'plain', 'blockwise'):
    run = jax.jit(functools.partial(attention, positions=positions, form=form, **kinds))
    found = run(q, k, v)
    np.testing.assert_array_equal(found, run(q, *spoilt))
    np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize('form', ['plain', 'blockwise', 'cpu'])
def test_a_query_that_sees_nothing_gives_zeros(form):
  (q, k, v, _), kinds, _ = make(8, 2, 2, None, None, False, True)
  positions = jnp.full((2, 1), 3)
  slots = jnp.full((2, 8), 9)
  run = once(attention, positions=positions, slots=slots, form=form, **kinds)
  out = run(q[:, :1], k, v)
  np.testing.assert_array_equal(out, 0)


@pytest.mark.parametrize('form', [alone('blockwise'), None])
@pytest.mark.parametrize('window', [None, alone(100)])
def test_memory_grows_linearly(form, window):
  """Forward and backward; the square of the longest row alone would be 512 MiB."""

  def memory(T):
    x = jax.ShapeDtypeStruct((1, T, 2, 16), jnp.float32)

    def total(q, k, v):
      return attention(q, k, v, form=form, window=window, scale=0.25).sum()

    compiled = once(jax.grad(total, (0, 1, 2))).lower(x, x, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  used = memory(2048), memory(8192)
  assert used[1] < 64 * 2**20, used
  assert used[1] < 4.4 * used[0], used


def test_bfloat16_keeps_its_dtype_and_a_float32_softmax():
  arrays, kinds, segments = make(*CASES['all'])
  halves = [x.astype(jnp.bfloat16) for x in arrays]
  wanted = results(
    lambda q, k, v: attention(q, k, v, segments=segments, form='plain', **kinds),
    *(x.astype(jnp.float32) for x in halves),
  )
  for form in ('plain', 'blockwise', 'cpu'):
    found = results(
      lambda q, k, v, form=form: attention(
        q, k, v, segments=segments, form=form, **kinds
      ),
      *halves,
    )
    for f, w in zip(found, wanted, strict=True):
      assert f.dtype == jnp.bfloat16
      np.testing.assert_allclose(f.astype(jnp.float32), w, atol=0.08)


def test_probabilities_are_what_the_oracle_mixes_by():
  (q, k, v, _), kinds, segments = make(*CASES['all'])
  p = once(attention_plain.probabilities, segments=segments, **kinds)(q, k)
  np.testing.assert_allclose(np.sum(p, -1), 1, atol=1e-6)
  found = once(attention, segments=segments, form='plain', **kinds)(q, k, v)
  np.testing.assert_allclose(once(attention_plain.mix)(p, v), found, atol=1e-6)


@pytest.mark.parametrize('kv_heads', [4, alone(1)])
def test_on_a_mesh(kv_heads):
  """Rows and heads cut over devices; one key head cannot be cut, and is repeated."""
  (q, k, v, w), kinds, segments = make(128, 4, kv_heads, None, None, True, True)
  wanted = results(
    lambda q, k, v: attention(q, k, v, segments=segments, form='plain', **kinds),
    *(q, k, v, w),
  )
  with sharding.use(sharding.make_mesh(dict(data=2, tensor=4))):
    found = results(
      lambda q, k, v: attention_fused.splash(
        q, k, v, segments=segments, interpret=True, **kinds
      ),
      *(q, k, v, w),
    )
  for f, x in zip(found, wanted, strict=True):
    np.testing.assert_allclose(f, x, rtol=2e-5, atol=2e-5)


def test_an_unknown_form_names_the_nearest():
  (q, k, v, _), kinds, _ = make(*CASES['causal'])
  with pytest.raises(Mistake, match="did you mean 'splash'"):
    attention(q, k, v, form='spalsh', **kinds)
