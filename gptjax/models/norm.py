"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang & Sennrich 2019), in float32.

Letters: N tokens, D width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from gptjax import sharding
from gptjax.models.settings import Settings
from gptjax.models.weight import lift, weight


class Norm(nn.Module):
  """The norm of the settings."""

  c: Settings

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [..., D] normed over its last axis, in float32; returned in x's dtype."""
    c, shape = self.c, (x.shape[-1],)
    init = nn.initializers.zeros if c.norm_offset else nn.initializers.ones
    scale = weight(self, 'scale', shape, ('norm',), init)
    if c.norm == 'rms':
      return rms(x, scale, c)
    bias = None
    if c.norm_bias:
      bias = weight(self, 'bias', shape, ('norm',), nn.initializers.zeros)
    return _normed(x, scale, bias, True, c.norm_epsilon)


def rms(x: Array, scale: Array, c: Settings) -> Array:
  """x over its root mean square, times scale, or 1 + scale with `norm_offset`."""
  scale = scale.astype(jnp.float32) + (1.0 if c.norm_offset else 0.0)
  return _normed(x, scale, None, False, c.norm_epsilon)


def _normed(
  x: Array, scale: Array, bias: Array | None, centred: bool, epsilon: float
) -> Array:
  """x [..., D] with mean 0 (if centred) and mean square 1, times scale, plus bias."""
  scale = scale.astype(jnp.float32)
  bias = None if bias is None else bias.astype(jnp.float32)
  if sharding.platform() == 'cpu':
    flat = x.reshape(-1, x.shape[-1])
    return _saving(flat, scale, bias, centred, epsilon).reshape(x.shape)
  y, _ = _standard(x, centred, epsilon)
  y = y * lift(scale, y.ndim)
  return (y if bias is None else y + lift(bias, y.ndim)).astype(x.dtype)


def _standard(x: Array, centred: bool, epsilon: float) -> tuple[Array, Any]:
  """x with mean 0 (if centred) and mean square 1; the mean and the factor."""
  x = x.astype(jnp.float32)
  mean = jnp.mean(x, -1, keepdims=True) if centred else jnp.zeros((1,) * x.ndim)
  x = x - mean if centred else x
  factor = jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon)
  return x * factor, (mean, factor)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _saving(
  x: Array, scale: Array, bias: Array | None, centred: bool, epsilon: float
) -> Array:
  """x [N, D] normed, for a CPU: mean and factor are kept for the backward pass.

  Left to itself, XLA writes several arrays of x's size to read them there again.
  """
  return _forward(x, scale, bias, centred, epsilon)[0]


def _forward(
  x: Array, scale: Array, bias: Array | None, centred: bool, epsilon: float
) -> tuple[Array, Any]:
  y, moments = _standard(x, centred, epsilon)
  y = y * scale[None]
  y = y if bias is None else y + bias[None]
  return y.astype(x.dtype), (x, scale, bias is not None, moments)


def _backward(centred: bool, epsilon: float, saved: Any, dy: Array) -> Any:
  del epsilon
  x, scale, biased, (mean, factor) = saved
  dy = dy.astype(jnp.float32)
  y = (x.astype(jnp.float32) - mean) * factor
  ds = dy * scale[None]
  dx = ds - y * jnp.mean(ds * y, -1, keepdims=True)
  if centred:
    dx = dx - jnp.mean(ds, -1, keepdims=True)
  d_bias = jnp.sum(dy, 0) if biased else None
  return (dx * factor).astype(x.dtype), jnp.sum(dy * y, 0), d_bias


_saving.defvjp(_forward, _backward)
