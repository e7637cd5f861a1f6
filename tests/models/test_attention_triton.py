"""The GPU's kernel, interpreted, against the plain form; lowered in test_forms.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import sharding
from gptjax.models import attention_fused
from gptjax.models.attention import attention

# Compiling the interpreter's program takes far longer than running it.
QUICK = dict(xla_backend_optimization_level=0, xla_llvm_disable_expensive_passes=True)

# Name: (T, H, G, K, dtype, segments, kinds). A head of 24 is filled up to 32.
CASES = {
  'all': (300, 4, 2, 24, 'float32', True, dict(window=100, softcap=5.0)),
  'all both ways': (
    *(257, 2, 1, 16, 'float32', True),
    dict(window=70, softcap=5.0, causal=False),
  ),
  'causal, whole blocks': (256, 2, 2, 64, 'float32', False, {}),
  'all see all': (300, 2, 2, 64, 'bfloat16', False, dict(causal=False)),
}


def make(T, H, G, K, dtype='float32', B=1):
  """Queries, keys, values, and weights of the outputs."""
  rng = np.random.default_rng(0)
  shapes = [(B, T, H, K), (B, T, G, K), (B, T, G, K), (B, T, H, K)]
  return [jnp.asarray(rng.normal(size=s), dtype) for s in shapes]


def both(function, q, k, v, w):
  """Output and the gradients of q, k and v."""

  @functools.partial(jax.jit, compiler_options=QUICK)
  def run(q, k, v, w):
    out, pull = jax.vjp(function, q, k, v)
    return out, *pull(w)

  return run(q, k, v, w)


def near(found, wanted, tolerance):
  """Within a part of the largest number: float error is of the sums' size."""
  for f, x in zip(found, wanted, strict=True):
    x = np.asarray(x, np.float32)
    atol = tolerance * np.abs(x).max()
    np.testing.assert_allclose(np.asarray(f, np.float32), x, rtol=0, atol=atol)


@pytest.mark.parametrize('case', CASES)
def test_it_equals_the_oracle(case):
  T, H, G, K, dtype, packed, kinds = CASES[case]
  arrays = make(T, H, G, K, dtype)
  segments = None
  if packed:
    ids = jnp.sort(jnp.asarray(np.random.default_rng(1).integers(0, 4, (1, T))))
    # The first queries see no key: zeros, and no gradient.
    segments = ids, ids.at[:, :200].add(-(ids[:, :200] == 0).astype(ids.dtype))
  kinds = dict(kinds, segments=segments, scale=K**-0.5)
  kernel = functools.partial(attention_fused.triton, interpret=True, **kinds)
  found = both(kernel, *arrays)
  arrays = [x.astype(jnp.float32) for x in arrays]
  wanted = both(functools.partial(attention, form='plain', **kinds), *arrays)
  assert all(f.dtype == dtype for f in found)
  near(found, wanted, 2e-6 if dtype == 'float32' else 1e-2)
  if packed:
    alone = np.asarray(segments[0] == 0)
    assert alone.any()
    assert not np.asarray(found[0])[alone].any()
    assert not np.asarray(found[1])[alone].any()


def test_blocks_out_of_reach_are_never_read():
  """NaN there would show: a hidden score times NaN is NaN."""
  q, k, v, w = make(384, 1, 1, 16)
  far = np.r_[:64, 256:384]
  k, v = (x.at[:, far].set(jnp.nan) for x in (k, v))
  kernel = functools.partial(
    attention_fused.triton, window=20, scale=0.25, interpret=True
  )
  out, dq, dk, dv = both(kernel, q, k, v, w)
  for x in (out[:, 128:256], dq[:, 128:256], dk[:, 128:192], dv[:, 128:192]):
    assert np.isfinite(x).all()
  assert np.isnan(out[:, 256:]).all()


@pytest.mark.parametrize('kv_heads', [4, 1])
def test_on_a_mesh(kv_heads):
  """Rows and heads cut over devices; one key head cannot be cut, and is repeated."""
  arrays = make(64, 8, kv_heads, 16, B=2)
  ids = jnp.asarray(np.sort(np.random.default_rng(1).integers(0, 3, (2, 64))))
  kinds = dict(segments=(ids, ids), softcap=5.0, scale=0.25)
  wanted = both(functools.partial(attention, form='plain', **kinds), *arrays)
  with sharding.use(sharding.make_mesh(dict(data=2, tensor=4))):
    found = both(
      functools.partial(attention_fused.triton, interpret=True, **kinds), *arrays
    )
  near(found, wanted, 2e-6)
