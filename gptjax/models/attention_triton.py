"""Attention as Pallas kernels for GPUs, lowered by Triton: forward, dq, dk with dv.

A program holds one block of queries (keys, for dk and dv) and walks over the blocks on
the other side that are within reach; scores are made in registers, forward and again
backward. Query heads read the key head of their group where it lies. Letters as in
gptjax/words.py; R = H / G query heads a key head.

Source: FlashAttention-2, Dao 2023 (2307.08691), algorithms 1 and 2; soft cap: Gemma 2
report, 2024, section 2.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from gptjax.models.attention_plain import HIDDEN, Segments

_LOG2E = math.log2(math.e)  # Triton has a fast exp2, so scores are in units of log 2.
# Where the running maximum starts: above hidden scores, whose exp2 is then 0 in rows
# that have seen no key yet, and below all others.
_FLOOR = HIDDEN / 2


class _Shape(NamedTuple):
  """What is known when tracing."""

  length: int
  head: int
  causal: bool
  window: int | None
  softcap: float | None
  scale: float
  interpret: bool


class _Blocks(NamedTuple):
  """Rows that a program holds, and rows that it meets at a time."""

  own: int
  other: int


class _Places(NamedTuple):
  """Where rows stand, and their segments if there are any."""

  at: jax.Array
  ids: Any


def flash(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  segments: Segments | None = None,
  *,
  causal: bool = True,
  window: int | None = None,
  softcap: float | None = None,
  scale: float,
  interpret: bool = False,
) -> jax.Array:
  """As `attention` without positions and slots, on GPUs; any length and head size.

  Products of bfloat16 add up in float32; those of float32 are exact, unless
  jax.default_matmul_precision allows TF32.

  Args:
    q: [B, T, H, K]; H is a multiple of G.
    k, v: [B, T, G, K].
    segments: of the queries [B, T] and of the keys [B, T].
    causal, window, softcap, scale: as of `attention`.
    interpret: run the kernel's program on any platform, slowly.

  Returns:
    [B, T, H, K] in the dtype of v.
  """
  shape = _Shape(*q.shape[1::2], causal, window, softcap, scale, interpret)
  dtype = v.dtype
  return _attend(shape, q.astype(dtype), k.astype(dtype), v, segments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
  shape: _Shape, q: jax.Array, k: jax.Array, v: jax.Array, segments: Segments | None
) -> jax.Array:
  return _forward(shape, q, k, v, segments)[0]


def _forward(
  shape: _Shape, q: jax.Array, k: jax.Array, v: jax.Array, segments: Segments | None
) -> tuple[jax.Array, Any]:
  B, T, H, _ = q.shape
  R = H // k.shape[2]
  blocks = _blocks(q)[0]
  numbers = jax.ShapeDtypeStruct((B, H, T), jnp.float32)
  own_numbers = pl.BlockSpec((None, None, blocks.own), lambda i, b, h: (b, h, i))
  out, log_sum = _call(
    _forward_kernel,
    'flash_forward',
    shape,
    blocks,
    [_heads(q, blocks), _heads(k, blocks, R), _heads(v, blocks, R)],
    segments,
    [(q, _own_rows(q, blocks)), (numbers, own_numbers)],
  )(q, k, v)
  out, log_sum = checkpoint_name((out, log_sum), 'attention')
  return out, (q, k, v, segments, out, log_sum)


def _backward(shape: _Shape, saved: Any, d_out: jax.Array) -> tuple[Any, ...]:
  q, k, v, segments, out, log_sum = saved
  R = q.shape[2] // k.shape[2]
  blocks = _blocks(q)[1]
  delta = jnp.einsum('BTHK,BTHK->BHT', d_out, out, preferred_element_type=jnp.float32)
  given = q, k, v, d_out, log_sum, delta
  of_query = _heads(q, blocks), _numbers(q, blocks)
  of_key = _heads(k, blocks, R)
  (dq,) = _call(
    _dq_kernel,
    'flash_dq',
    shape,
    blocks,
    [of_query[0], of_key, of_key, of_query[0], of_query[1], of_query[1]],
    segments,
    [(q, _own_rows(q, blocks))],
  )(*given)
  of_query = _heads(q, blocks, group=R), _numbers(q, blocks, group=R)
  of_key = _heads(k, blocks)
  dk, dv = _call(
    _dk_kernel,
    'flash_dk_dv',
    shape,
    blocks,
    [of_query[0], of_key, of_key, of_query[0], of_query[1], of_query[1]],
    segments,
    [(k, _own_rows(k, blocks)), (v, _own_rows(v, blocks))],
  )(*given)
  return dq, dk, dv, None


_attend.defvjp(_forward, _backward)


def _forward_kernel(
  q_ref: Any, k_ref: Any, v_ref: Any, ids: Any, out_ref: Any, log_sum_ref: Any,
  *, shape: _Shape, blocks: _Blocks,
) -> None:  # fmt: skip
  start = pl.program_id(0) * blocks.own
  q = _rows(shape, q_ref, start, blocks.own)
  own = _places(shape, ids and ids[0], start, blocks.own)

  def meet(j: jax.Array, carry: Any) -> Any:
    out, top, total = carry
    begin = j * blocks.other
    k = _rows(shape, k_ref, begin, blocks.other)
    v = _rows(shape, v_ref, begin, blocks.other)
    other = _places(shape, ids and ids[1], begin, blocks.other)
    s, _ = _scores(shape, q, k, own, other)
    higher = jnp.maximum(top, s.max(-1))
    p = jnp.exp2(s - higher[:, None])
    fade = jnp.exp2(top - higher)
    out = out * fade[:, None] + plgpu.dot(p.astype(v.dtype), v)
    return out, higher, total * fade + p.sum(-1)

  carry = (
    jnp.zeros(q.shape, jnp.float32),
    jnp.full(blocks.own, _FLOOR, jnp.float32),
    jnp.zeros(blocks.own, jnp.float32),
  )
  reach = _reach(shape, start, blocks, keys=True)
  out, top, total = jax.lax.fori_loop(*reach, meet, carry)
  total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)  # Rows that see no key.
  _store(shape, out_ref, start, out / total[:, None])
  _store(shape, log_sum_ref, start, top + jnp.log2(total))


def _dq_kernel(
  q_ref: Any, k_ref: Any, v_ref: Any, d_out_ref: Any, log_sum_ref: Any, delta_ref: Any,
  ids: Any, dq_ref: Any, *, shape: _Shape, blocks: _Blocks,
) -> None:  # fmt: skip
  start = pl.program_id(0) * blocks.own
  q = _rows(shape, q_ref, start, blocks.own)
  d_out = _rows(shape, d_out_ref, start, blocks.own)
  log_sum = _rows(shape, log_sum_ref, start, blocks.own)
  delta = _rows(shape, delta_ref, start, blocks.own)
  own = _places(shape, ids and ids[0], start, blocks.own)

  def meet(j: jax.Array, dq: jax.Array) -> jax.Array:
    begin = j * blocks.other
    k = _rows(shape, k_ref, begin, blocks.other)
    v = _rows(shape, v_ref, begin, blocks.other)
    other = _places(shape, ids and ids[1], begin, blocks.other)
    s, slope = _scores(shape, q, k, own, other)
    p = jnp.exp2(s - log_sum[:, None])
    ds = p * (plgpu.dot(d_out, v, trans_b=True) - delta[:, None]) * slope
    return dq + plgpu.dot(ds.astype(k.dtype), k)

  reach = _reach(shape, start, blocks, keys=True)
  zeros = jnp.zeros(q.shape, jnp.float32)
  _store(shape, dq_ref, start, jax.lax.fori_loop(*reach, meet, zeros))


def _dk_kernel(
  q_ref: Any, k_ref: Any, v_ref: Any, d_out_ref: Any, log_sum_ref: Any, delta_ref: Any,
  ids: Any, dk_ref: Any, dv_ref: Any, *, shape: _Shape, blocks: _Blocks,
) -> None:  # fmt: skip
  """Scores stand with keys as rows here, so that no product wants them transposed."""
  start = pl.program_id(0) * blocks.own
  k = _rows(shape, k_ref, start, blocks.own)
  v = _rows(shape, v_ref, start, blocks.own)
  own = _places(shape, ids and ids[1], start, blocks.own)

  def meet(r: jax.Array, j: jax.Array, carry: Any) -> Any:
    dk, dv = carry
    begin = j * blocks.other
    q = _rows(shape, q_ref, begin, blocks.other, r)
    d_out = _rows(shape, d_out_ref, begin, blocks.other, r)
    log_sum = _rows(shape, log_sum_ref, begin, blocks.other, r)
    delta = _rows(shape, delta_ref, begin, blocks.other, r)
    other = _places(shape, ids and ids[0], begin, blocks.other)
    s, slope = _scores(shape, k, q, own, other, keys=True)
    p = jnp.exp2(s - log_sum[None, :])
    ds = p * (plgpu.dot(v, d_out, trans_b=True) - delta[None, :]) * slope
    dk = dk + plgpu.dot(ds.astype(q.dtype), q)
    return dk, dv + plgpu.dot(p.astype(d_out.dtype), d_out)

  reach = _reach(shape, start, blocks, keys=False)

  def head(r: jax.Array, carry: Any) -> Any:
    return jax.lax.fori_loop(*reach, functools.partial(meet, r), carry)

  zeros = jnp.zeros(k.shape, jnp.float32)
  dk, dv = jax.lax.fori_loop(0, q_ref.shape[1], head, (zeros, zeros))
  _store(shape, dk_ref, start, dk)
  _store(shape, dv_ref, start, dv)


def _scores(
  shape: _Shape,
  x: jax.Array,
  y: jax.Array,
  own: _Places,
  other: _Places,
  keys: bool = False,
) -> tuple[jax.Array, Any]:
  """Scores of rows x against rows y, over log 2, and their slope by the product x y.

  `keys` says that x are keys and y queries.
  """
  s = plgpu.dot(x, y, trans_b=True)
  slope: Any = shape.scale
  if shape.softcap is None:
    s = s * (shape.scale * _LOG2E)
  else:
    squeezed = jnp.tanh(s * (shape.scale / shape.softcap))
    slope = shape.scale * (1 - squeezed * squeezed)
    s = squeezed * (shape.softcap * _LOG2E)
  distance = own.at[:, None] - other.at[None, :]
  distance = -distance if keys else distance
  seen = []
  if shape.causal:
    seen.append(distance >= 0)
  if shape.window is not None:
    far = distance if shape.causal else jnp.abs(distance)
    seen.append(far < shape.window)
  if own.ids is not None:
    seen.append(own.ids[:, None] == other.ids[None, :])
  if shape.length % max(s.shape):
    last = jnp.maximum(own.at[:, None], other.at[None, :])
    seen.append(last < shape.length)
  if seen:
    s = jnp.where(functools.reduce(jnp.logical_and, seen), s, HIDDEN)
  return s, slope


def _reach(
  shape: _Shape, start: jax.Array, blocks: _Blocks, keys: bool
) -> tuple[Any, Any]:
  """First and one past the last block of keys (or queries) that own rows meet."""
  far = shape.length if shape.window is None else shape.window - 1
  near = 0 if shape.causal else far
  back, forth = (far, near) if keys else (near, far)
  first = jax.lax.div(jnp.maximum(start - back, 0), blocks.other)
  end = jax.lax.div(start + blocks.own - 1 + forth, blocks.other) + 1
  return first, jnp.minimum(end, pl.cdiv(shape.length, blocks.other))


def _rows(
  shape: _Shape, ref: Any, start: jax.Array, size: int, *head: jax.Array
) -> jax.Array:
  """Rows [size, K] of ref [T, ., K], or numbers [size] of ref [., T]; zeros outside."""
  rows = pl.ds(start, size)
  wide = len(ref.shape) - len(head) == 2
  part = ref.at[(rows, *head, slice(None)) if wide else (*head, rows)]
  mask = _inside(shape, start, size, ref.shape[-1] if wide else None)
  return plgpu.load(part, mask=mask, other=None if mask is None else 0)


def _places(shape: _Shape, ref: Any, start: jax.Array, size: int) -> _Places:
  ids = None if ref is None else _rows(shape, ref, start, size)
  return _Places(start + jnp.arange(size), ids)


def _store(shape: _Shape, ref: Any, start: jax.Array, value: jax.Array) -> None:
  plgpu.store(ref, value.astype(ref.dtype), mask=_inside(shape, start, *value.shape))


def _inside(
  shape: _Shape, start: jax.Array, size: int, width: int | None = None
) -> jax.Array | None:
  """Which of [size] or [size, width] elements the array has; None: all."""
  if shape.length % size == 0 and width in (None, shape.head):
    return None
  mask = start + jnp.arange(size) < shape.length
  if width is None:
    return mask
  return mask[:, None] & (jnp.arange(width)[None, :] < shape.head)


def _call(
  kernel: Callable[..., None],
  name: str,
  shape: _Shape,
  blocks: _Blocks,
  specs: list[pl.BlockSpec],
  segments: Segments | None,
  outs: list[tuple[Any, pl.BlockSpec]],
) -> Callable[..., Any]:
  """The kernel as a function of arrays: a program a block of the first output."""
  B, _, heads, _ = outs[0][0].shape
  ids = None
  if segments is not None:
    row = pl.BlockSpec((None, _filled(shape.length, blocks)), lambda i, b, h: (b, 0))
    ids = row, row
  call = pl.pallas_call(
    functools.partial(kernel, shape=shape, blocks=blocks),
    name=name,
    grid=(pl.cdiv(shape.length, blocks.own), B, heads),
    in_specs=[*specs, ids],
    out_specs=[spec for _, spec in outs],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outs],
    compiler_params=plgpu.CompilerParams(
      num_warps=4 if shape.head <= 64 else 8, num_stages=2
    ),
    interpret=shape.interpret,
  )
  return lambda *arrays: call(*arrays, segments)


def _blocks(q: jax.Array) -> tuple[_Blocks, _Blocks]:
  """Of the forward and of the backward kernels: what fits into 99 KB of shared memory.

  A program of the forward kernel keeps there its queries and two blocks of keys and
  of values; one of the backward kernels two blocks, and two of each of two more.
  """
  row = _width(q) * q.dtype.itemsize
  if row <= 128:
    return _Blocks(128, 64), _Blocks(64, 64)
  if row <= 256:
    return _Blocks(128, 64), _Blocks(64, 32)
  if row <= 512:
    return _Blocks(64, 32), _Blocks(32, 32)
  return _Blocks(32, 16), _Blocks(16, 16)


def _width(x: jax.Array) -> int:
  """The head size as Triton wants it: a power of two, and at least 16 for products."""
  return max(16, pl.next_power_of_2(x.shape[3]))


def _filled(length: int, blocks: _Blocks) -> int:
  """Rows as whole blocks of either size; the size of one is a multiple of the other."""
  return -(-length // max(blocks)) * max(blocks)


def _heads(
  x: jax.Array, blocks: _Blocks, shared: int = 1, group: int | None = None
) -> pl.BlockSpec:
  """All rows of a head: `shared` programs read the same one; or of a group of heads."""
  rows = _filled(x.shape[1], blocks)
  return pl.BlockSpec(
    (None, rows, group, _width(x)), lambda i, b, h: (b, 0, jax.lax.div(h, shared), 0)
  )


def _numbers(x: jax.Array, blocks: _Blocks, group: int | None = None) -> pl.BlockSpec:
  """As `_heads`, of [B, H, T]."""
  rows = _filled(x.shape[1], blocks)
  return pl.BlockSpec((None, group, rows), lambda i, b, h: (b, h, 0))


def _own_rows(x: jax.Array, blocks: _Blocks) -> pl.BlockSpec:
  return pl.BlockSpec((None, blocks.own, None, _width(x)), lambda i, b, h: (b, i, h, 0))
