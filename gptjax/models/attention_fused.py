"""Attention as one kernel: splash on TPUs, Pallas-Triton on GPUs.

Both never write scores to memory, and skip blocks that no query may see. GSPMD cannot
cut a kernel, so with a mesh in force it runs inside shard_map over rows and heads.

Source of splash: jax.experimental.pallas.ops.tpu.splash_attention.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gptjax import sharding
from gptjax.models.attention_plain import Segments

# Rows are filled up to a multiple: splash wants whole blocks of 128 lanes.
_BLOCK = 128


def splash(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  segments: Segments | None = None,
  causal: bool = True,
  window: int | None = None,
  softcap: float | None = None,
  scale: float,
  interpret: bool = False,
) -> jax.Array:
  """As `attention` without positions and slots, on TPUs; any length, all features."""
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  def local(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: Segments | None
  ) -> jax.Array:
    T, H = q.shape[1:3]
    if window is not None:
      sides = window - 1, 0 if causal else window - 1
      mask = masks.LocalMask((T, T), sides, 0)
    else:
      mask = masks.CausalMask((T, T)) if causal else masks.FullMask((T, T))
    kernel = kernels.make_splash_mha(
      masks.MultiHeadMask([mask] * H),
      head_shards=1,
      q_seq_shards=1,
      block_sizes=_splash_blocks(kernels, T),
      attn_logits_soft_cap=softcap,
      residual_checkpoint_name='attention',
      interpret=interpret,
    )
    ids = None if segments is None else kernels.SegmentIds(*segments)
    q, k, v = ((x.transpose(0, 2, 1, 3)) for x in (q * scale, k, v))
    out = jax.vmap(kernel)(q.astype(k.dtype), k, v, ids)
    return out.transpose(0, 2, 1, 3)

  return _filled(functools.partial(_cut, local), q, k, v, segments, causal)


def _splash_blocks(kernels: Any, length: int) -> Any:
  """The largest blocks up to 512 that divide the row."""
  size = next(s for s in (512, 256, 128) if length % s == 0)
  names = (
    *('block_q', 'block_kv', 'block_kv_compute', 'block_q_dkv', 'block_kv_dkv'),
    *('block_kv_dkv_compute', 'block_q_dq', 'block_kv_dq'),
  )
  return kernels.BlockSizes(**dict.fromkeys(names, size))


def triton(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  segments: Segments | None = None,
  causal: bool = True,
  window: int | None = None,
  softcap: float | None = None,
  scale: float,
  interpret: bool = False,
) -> jax.Array:
  """As `attention` without positions and slots, on GPUs; any length, all features."""
  from gptjax.models.attention_triton import flash

  kernel = functools.partial(
    flash,
    causal=causal,
    window=window,
    softcap=softcap,
    scale=scale,
    interpret=interpret,
  )
  return _cut(kernel, q, k, v, segments)


def _filled(
  kernel: Callable[..., jax.Array],
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  segments: Segments | None,
  causal: bool,
) -> jax.Array:
  """Fills rows up to whole blocks with tokens that no other token sees."""
  B, T = q.shape[:2]
  short = -T % _BLOCK
  if not short:
    return kernel(q, k, v, segments)
  if segments is None and not causal:  # Causal rows never look ahead at the filling.
    segments = jnp.zeros((B, T), jnp.int32), jnp.zeros((B, T), jnp.int32)
  if segments is not None:
    fill = functools.partial(
      jnp.pad, pad_width=((0, 0), (0, short)), constant_values=-1
    )
    segments = fill(segments[0]), fill(segments[1])
  q, k, v = (jnp.pad(x, ((0, 0), (0, short), (0, 0), (0, 0))) for x in (q, k, v))
  return kernel(q, k, v, segments)[:, :T]


def _cut(
  local: Callable[..., jax.Array],
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  segments: Segments | None,
) -> jax.Array:
  """Each device calls `local` on its rows and heads."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or math.prod(mesh.shape.values()) == 1:
    return local(q, k, v, segments)
  names = ('batch', None, 'act_heads', None)
  spec = sharding.spec(names, q.shape)
  if sharding.spec(names, k.shape) != spec:  # Fewer key heads than devices.
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
  rows = sharding.spec(('batch', None), q.shape[:2])
  places = None if segments is None else (rows, rows)
  return jax.shard_map(
    local, in_specs=(spec, spec, spec, places), out_specs=spec, check_vma=False
  )(q, k, v, segments)
