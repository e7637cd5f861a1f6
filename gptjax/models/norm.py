"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang & Sennrich 2019), in float32."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

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
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, -1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + c.norm_epsilon)
    y = y * lift(scale, y.ndim)
    if c.norm_bias:
      bias = weight(self, 'bias', shape, ('norm',), nn.initializers.zeros)
      y = y + lift(bias, y.ndim)
    return y.astype(x.dtype)


def rms(x: Array, scale: Array, c: Settings) -> Array:
  """x over its root mean square, times scale, or 1 + scale with `norm_offset`."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + c.norm_epsilon)
  scale = scale.astype(jnp.float32) + (1.0 if c.norm_offset else 0.0)
  return (y * lift(scale, y.ndim)).astype(x.dtype)
