"""The one seam where an activation meets a weight.

  linear(x, w, 'BTD,DHK->BTHK')

`w` is an array, `Lora(w, a, b, scale)` or `Int8(values, scales)`. Letters that x and w
share and the result lacks are summed over; they come last in x, first or last in w.
'...' stands for any leading axes of x.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from gptjax import sharding
from gptjax.models.dropout import drop
from gptjax.models.weight import lift


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['w', 'a', 'b', 'keys'],
  meta_fields=['scale', 'dropout'],
)
@dataclasses.dataclass(frozen=True)
class Lora:
  """A weight with a low-rank addition: w + scale * a b (Hu et al. 2021, eq. 3).

  a holds the summed axes of w and then the rank, b the rank and then w's other axes.
  With keys, one for each row of x, a share `dropout` of what `a` reads is zeroed.
  """

  w: Any
  a: Array
  b: Array
  keys: Array | None = None
  scale: float = 1.0
  dropout: float = 0.0


class Int8(NamedTuple):
  """A weight in 8 bits: values * scales, one scale for each output."""

  values: Array  # int8, shape of the weight
  scales: Array  # float32, the axes of the weight that are not summed over


def linear(
  x: Array,
  w: Any,
  eq: str,
  bias: Array | None = None,
  dtype: Any = None,
) -> Array:
  """x times w by the einsum equation `eq`, plus bias, in `dtype` (default: x's).

  The product is taken in x's dtype and summed in float32 where the machine can.
  """
  left, result = eq.replace('...', '').split('->')
  xs, ws = left.split(',')
  inner = ''.join(c for c in ws if c in xs and c not in result)
  outer = ''.join(c for c in ws if c not in inner)
  y = _product(x, w, ws, inner, outer, dtype or x.dtype)
  y = y if bias is None else y + lift(bias.astype(y.dtype), y.ndim)
  return checkpoint_name(y, 'product')


def _product(x: Array, w: Any, ws: str, inner: str, outer: str, dtype: Any) -> Array:
  if isinstance(w, Lora):
    # Never as w + a b: that would take the gradient of the whole frozen w.
    read = x if w.keys is None else drop(x, w.dropout, w.keys)
    low = _product(read, w.a, f'{inner}r', inner, 'r', x.dtype)
    low = checkpoint_name(low, 'product')
    high = _product(low, w.b, f'r{outer}', 'r', outer, dtype)
    return _product(x, w.w, ws, inner, outer, dtype) + w.scale * high
  if isinstance(w, Int8):
    y = _product(x, w.values, ws, inner, outer, dtype)
    return y * lift(w.scales.astype(dtype), y.ndim)
  w = w.astype(x.dtype)
  if sharding.platform() == 'cpu':
    return _flat(x, w, ws.startswith(inner), len(inner), dtype)
  eq = f'...{inner},{ws}->...{outer}'
  return jnp.einsum(eq, x, w, preferred_element_type=dtype)


def _flat(x: Array, w: Array, first: bool, n: int, dtype: Any) -> Array:
  """As one product of matrices: a CPU's fast form, forward and backward.

  With more axes XLA fuses the backward pass of all later layers into the transposed
  copy that each weight's gradient reads.
  """
  inner, outer = (w.shape[:n], w.shape[n:]) if first else (w.shape[-n:], w.shape[:-n])
  lead = x.shape[: x.ndim - n]
  x = x.reshape(-1, math.prod(inner))
  w = w.reshape((x.shape[1], -1) if first else (-1, x.shape[1]))
  y = jax.lax.dot_general(
    x, w, (((1,), (0 if first else 1,)), ((), ())), preferred_element_type=dtype
  )
  return y.reshape(*lead, *outer)


def quantise(w: Array, eq: str) -> Int8:
  """The weight of `eq` in 8 bits, its largest value in each output at 127."""
  xs, ws = eq.replace('...', '').split('->')[0].split(',')
  summed = tuple(i for i, c in enumerate(ws) if c in xs)
  top = jnp.max(jnp.abs(w), summed, keepdims=True)
  scale = jnp.where(top > 0, top, 1) / 127
  values = jnp.round(w / scale).astype(jnp.int8)
  return Int8(values, jnp.squeeze(scale, summed).astype(jnp.float32))


def rows(w: Any, index: Array, dtype: Any) -> Array:
  """Rows of an embedding table [V, D] at `index` [...] -> [..., D]."""
  if isinstance(w, Int8):
    return w.values[index].astype(dtype) * w.scales[index].astype(dtype)[..., None]
  return w[index].astype(dtype)
