"""Attention over blocks of keys, the softmax kept as it goes: memory linear in length.

A scan over blocks of queries, in it a loop over the blocks of keys within their reach.
The backward pass keeps queries, keys, values, the output and one number a query (the
log of its softmax sum), and makes the probabilities again block by block.

Source: Rabe & Staats 2021 (2112.05682); FlashAttention-2, Dao 2023, algorithms 1 and 2.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gptjax.models.attention_plain import HIDDEN, Segments, cap, visible


class Shape(NamedTuple):
  """What is known when tracing."""

  causal: bool
  window: int | None
  softcap: float | None
  scale: float
  aligned: bool  # Query i and key i stand at place i: blocks out of reach are skipped.


class Places(NamedTuple):
  """Where queries [blocks, B or 1, block] or keys stand, and in which segment."""

  at: jax.Array
  segment: jax.Array | None


def blockwise(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  positions: jax.Array | None = None,
  slots: jax.Array | None = None,
  segments: Segments | None = None,
  causal: bool = True,
  window: int | None = None,
  softcap: float | None = None,
  scale: float,
  block: int = 512,
) -> jax.Array:
  """As `attention`; `block` queries meet `block` keys at a time. Any length."""
  B, T, H, K = q.shape
  S, G = k.shape[1:3]
  aligned = positions is None and slots is None
  positions = jnp.arange(T)[None] if positions is None else positions
  slots = jnp.arange(S)[None] if slots is None else slots
  size = min(block, -(-max(T, S) // 8) * 8)
  if segments is None and S % size:
    segments = jnp.zeros((1, T), jnp.int32), jnp.zeros((1, S), jnp.int32)
  q_segments, k_segments = segments or (None, None)
  # Keys that fill the last block belong to no segment, so nobody sees them.
  rows = Places(_cut(positions, size), _cut(q_segments, size))
  keys = Places(_cut(slots, size), _cut(k_segments, size, fill=-1))
  shape = Shape(causal, window, softcap, scale, aligned)
  grouped = q.reshape(B, T, G, H // G, K)
  out = _attend(shape, rows, keys, _cut(grouped, size), _cut(k, size), _cut(v, size))
  out = jnp.moveaxis(out, 0, 1).reshape(B, -1, H, K)
  return out[:, :T].astype(v.dtype)


def _cut(x: Any, size: int, fill: int = 0) -> Any:
  """[B, T, ...] to [blocks, B, size, ...]; the last block is filled up."""
  if x is None:
    return None
  short = -x.shape[1] % size
  x = jnp.pad(x, [(0, 0), (0, short)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
  return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _reach(shape: Shape, i: jax.Array, size: int, blocks: int) -> tuple[Any, Any]:
  """First and one past the last block of keys that block i of queries may see."""
  first, last = 0, blocks
  if shape.aligned and shape.window is not None:
    first = jnp.maximum(0, (i * size - shape.window + 1) // size)
    if not shape.causal:
      last = jnp.minimum(blocks, ((i + 1) * size + shape.window - 2) // size + 1)
  if shape.aligned and shape.causal:
    last = jnp.minimum(blocks, i + 1)
  return first, last


def _scores(
  shape: Shape, row: Places, key: Places, q: jax.Array, k: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Capped scores, and the mask, of one block against one: [B, G, R, Q, S]."""
  segments = None
  if row.segment is not None and key.segment is not None:
    segments = row.segment, key.segment
  mask = visible(row.at, key.at, segments, causal=shape.causal, window=shape.window)
  s = jnp.einsum('BQGRK,BSGK->BGRQS', q, k, preferred_element_type=jnp.float32)
  return cap(s * shape.scale, shape.softcap), mask[:, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
  shape: Shape, rows: Places, keys: Places, q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
  """q [n, B, Q, G, R, K], k and v [m, B, S, G, K] to [n, B, Q, G, R, K] in float32."""
  return _forward(shape, rows, keys, q, k, v)[0]


def _forward(
  shape: Shape, rows: Places, keys: Places, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, Any]:
  _, B, Q, G, R, K = q.shape

  def row(_: None, x: Any) -> tuple[None, Any]:
    i, place, qi = x

    def meet(j: jax.Array, carry: Any) -> Any:
      out, top, total = carry
      key, kj, vj = jax.tree.map(lambda leaf: leaf[j], (keys, k, v))
      s, mask = _scores(shape, place, key, qi, kj)
      s = jnp.where(mask, s, HIDDEN)
      higher = jnp.maximum(top, s.max(-1))
      p = jnp.where(mask, jnp.exp(s - higher[..., None]), 0)
      fade = jnp.exp(top - higher)
      more = jnp.einsum(
        'BGRQS,BSGK->BGRQK', p.astype(vj.dtype), vj, preferred_element_type=jnp.float32
      )
      return out * fade[..., None] + more, higher, total * fade + p.sum(-1)

    start = (
      jnp.zeros((B, G, R, Q, K), jnp.float32),
      jnp.full((B, G, R, Q), HIDDEN),
      jnp.zeros((B, G, R, Q)),
    )
    first, last = _reach(shape, i, Q, k.shape[0])
    out, top, total = jax.lax.fori_loop(first, last, meet, start)
    total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)  # Rows that see no key.
    out = (out / total[..., None]).transpose(0, 3, 1, 2, 4)  # [B, Q, G, R, K]
    return None, (out, top + jnp.log(total))

  blocks = jnp.arange(q.shape[0]), rows, q
  _, (out, log_sum) = jax.lax.scan(row, None, blocks)
  out, log_sum = checkpoint_name((out, log_sum), 'attention')
  return out, (rows, keys, q, k, v, out, log_sum)


def _backward(shape: Shape, saved: Any, d_out: jax.Array) -> tuple[Any, ...]:
  rows, keys, q, k, v, out, log_sum = saved

  def row(carry: Any, x: Any) -> tuple[Any, jax.Array]:
    i, place, qi, d_out, out, log_sum = x
    delta = jnp.einsum('BQGRK,BQGRK->BGRQ', d_out, out)
    d_out = d_out.astype(v.dtype)

    def meet(j: jax.Array, carry: Any) -> Any:
      dk, dv, dq = carry
      key, kj, vj = jax.tree.map(lambda leaf: leaf[j], (keys, k, v))
      s, mask = _scores(shape, place, key, qi, kj)
      p = jnp.where(mask, jnp.exp(s - log_sum[..., None]), 0)
      product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
      dp = product('BQGRK,BSGK->BGRQS', d_out, vj)
      ds = p * (dp - delta[..., None]) * shape.scale
      if shape.softcap is not None:
        ds = ds * (1 - jnp.square(s / shape.softcap))
      p, ds = p.astype(v.dtype), ds.astype(k.dtype)
      dv = dv.at[j].add(product('BGRQS,BQGRK->BSGK', p, d_out))
      dk = dk.at[j].add(product('BGRQS,BQGRK->BSGK', ds, qi))
      return dk, dv, dq + product('BGRQS,BSGK->BQGRK', ds, kj)

    first, last = _reach(shape, i, q.shape[2], k.shape[0])
    dq = jnp.zeros(qi.shape, jnp.float32)
    *carry, dq = jax.lax.fori_loop(first, last, meet, (*carry, dq))
    return tuple(carry), dq.astype(q.dtype)

  zeros = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  blocks = jnp.arange(q.shape[0]), rows, q, d_out, out, log_sum
  (dk, dv), dq = jax.lax.scan(row, zeros, blocks)
  return None, None, dq, dk.astype(k.dtype), dv.astype(v.dtype)


_attend.defvjp(_forward, _backward)
