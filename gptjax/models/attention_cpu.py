"""Attention for a CPU: rectangles of the causal triangle, written out one by one.

A block of queries meets all keys within its reach at once, so the softmax is the plain
one and half of the square is never computed. [B, G, R, T, K] all through, so that every
product is a batch of plain matrix products. The backward pass makes the probabilities
again from the log of the softmax sum.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gptjax.models.attention_plain import HIDDEN, Segments, cap, visible

LONGEST = 1024  # Longer rows go blockwise: a rectangle's width grows with the length.


class Shape(NamedTuple):
  """What is known when tracing."""

  causal: bool
  window: int | None
  softcap: float | None
  block: int


def triangle(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  segments: Segments | None = None,
  causal: bool = True,
  window: int | None = None,
  softcap: float | None = None,
  scale: float,
  block: int = 64,
) -> jax.Array:
  """As `attention` without positions and slots: query i stands at key i."""
  B, T, H, K = q.shape
  G = k.shape[2]
  # The scale goes into q, which is smaller than the scores.
  q = (q * scale).astype(q.dtype).reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
  k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # [B, G, T, K]
  out = _attend(Shape(causal, window, softcap, block), segments, q, k, v)
  return out.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)


def _rectangles(shape: Shape, length: int) -> list[tuple[slice, slice]]:
  """Blocks of queries, each with the keys within its reach."""
  found = []
  for start in range(0, length, shape.block):
    stop = min(start + shape.block, length)
    first, last = 0, stop if shape.causal else length
    if shape.window is not None:
      first = max(0, start - shape.window + 1)
      last = min(last, stop + shape.window - 1)
    found.append((slice(start, stop), slice(first, last)))
  return found


def _scores(
  shape: Shape, segments: Any, rows: slice, keys: slice, q: jax.Array, k: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Capped scores of some rows against some keys, and their mask: [B, G, R, Q, S]."""
  if segments is not None:
    segments = segments[0][:, rows], segments[1][:, keys]
  mask = visible(
    jnp.arange(rows.start, rows.stop)[None],
    jnp.arange(keys.start, keys.stop)[None],
    segments,
    causal=shape.causal,
    window=shape.window,
  )
  s = _product('BGRQK,BGSK->BGRQS', q[:, :, :, rows], k[:, :, keys])
  return cap(s, shape.softcap), mask[:, None, None]


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
  shape: Shape, segments: Any, q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
  return _forward(shape, segments, q, k, v)[0]


def _forward(
  shape: Shape, segments: Any, q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, Any]:
  outs, log_sums = [], []
  for rows, keys in _rectangles(shape, q.shape[3]):
    s, mask = _scores(shape, segments, rows, keys, q, k)
    s = jnp.where(mask, s, HIDDEN)
    top = s.max(-1, keepdims=True)
    p = jnp.exp(s - top)
    total = p.sum(-1, keepdims=True)
    out = _product('BGRQS,BGSK->BGRQK', p.astype(v.dtype), v[:, :, keys])
    outs.append((out / total).astype(v.dtype))
    log_sums.append(top + jnp.log(total))
  out, log_sum = jnp.concatenate(outs, 3), jnp.concatenate(log_sums, 3)
  out, log_sum = checkpoint_name((out, log_sum), 'attention')
  return out, (segments, q, k, v, out, log_sum)


def _backward(shape: Shape, saved: Any, d_out: jax.Array) -> tuple[Any, ...]:
  segments, q, k, v, out, log_sum = saved
  delta = jnp.sum(d_out.astype(jnp.float32) * out, -1, keepdims=True)
  dqs = []
  dk, dv = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  for rows, keys in _rectangles(shape, q.shape[3]):
    s, mask = _scores(shape, segments, rows, keys, q, k)
    p = jnp.where(mask, jnp.exp(s - log_sum[:, :, :, rows]), 0)
    dp = _product('BGRQK,BGSK->BGRQS', d_out[:, :, :, rows], v[:, :, keys])
    ds = p * (dp - delta[:, :, :, rows])
    if shape.softcap is not None:
      ds = ds * (1 - jnp.square(s / shape.softcap))
    p, ds = p.astype(v.dtype), ds.astype(k.dtype)
    dqs.append(_product('BGRQS,BGSK->BGRQK', ds, k[:, :, keys]).astype(q.dtype))
    more = _product('BGRQS,BGRQK->BGSK', p, d_out[:, :, :, rows])
    dv = dv.at[:, :, keys].add(more)
    more = _product('BGRQS,BGRQK->BGSK', ds, q[:, :, :, rows])
    dk = dk.at[:, :, keys].add(more)
  return None, jnp.concatenate(dqs, 3), dk.astype(k.dtype), dv.astype(v.dtype)


_attend.defvjp(_forward, _backward)


def single(
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
) -> jax.Array:
  """As `attention`, for one query [B, 1, H, K] a row against a cache.

  The queries of a key head stand in columns of their own in a matrix [B, H, G K] that
  is zero elsewhere. Both products then read the cache as it lies, [B, S, G K], where a
  product for each head would copy it. G times the multiplications cost less than that.
  """
  B, _, H, K = q.shape
  S, G = k.shape[1:3]
  positions = jnp.zeros((1, 1), jnp.int32) if positions is None else positions
  slots = jnp.arange(S)[None] if slots is None else slots
  mask = visible(positions, slots, segments, causal=causal, window=window)  # [B, 1, S]
  own = jnp.eye(G, dtype=q.dtype)
  q = jnp.einsum('BGRK,GF->BGRFK', (q * scale).reshape(B, G, H // G, K), own)
  q = q.reshape(B, H, G * K)
  keys, values = k.reshape(B, S, G * K), v.reshape(B, S, G * K)
  s = jnp.einsum('BHX,BSX->BHS', q, keys, preferred_element_type=jnp.float32)
  s = jnp.where(mask, cap(s, softcap), HIDDEN)
  p = jnp.where(mask, jax.nn.softmax(s, axis=-1), 0).astype(v.dtype)
  out = jnp.einsum('BHS,BSX->BHX', p, values)
  out = jnp.einsum('BGRFK,GF->BGRK', out.reshape(B, G, H // G, G, K), own)
  return out.reshape(B, 1, H, K)
