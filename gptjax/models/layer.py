"""One layer: attention and MLP, each added to the trunk, with their norms.

Letters: B rows, T tokens, S slots, D width, H query heads, G key heads, K head size.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from gptjax.models.attention import attention
from gptjax.models.attention_plain import mix, probabilities
from gptjax.models.cache import write
from gptjax.models.dropout import dropout
from gptjax.models.linear import linear
from gptjax.models.mlp import Mlp
from gptjax.models.norm import Norm, rms
from gptjax.models.rope import rotate
from gptjax.models.settings import Settings
from gptjax.models.weight import weight
from gptjax.sharding import shard

# What may be watched and edited, by name.
WATCHED = {
  'query': 'the queries, turned [B, T, H, K]',
  'key': 'the keys, turned [B, T, G, K]',
  'value': 'the values [B, T, G, K]',
  'attention': 'the probabilities, float32 [B, H, T, S]',
  'heads': 'what each head gives, before the output product [B, T, H, K]',
  'attention_out': 'what attention adds to the trunk [B, T, D]',
  'mlp': 'what the MLP adds to the trunk [B, T, D]',
  'residual': 'the trunk after the layer [B, T, D]',
}


class Pass(NamedTuple):
  """What all layers of one forward pass share."""

  rows: Array  # [B] row within the whole update.
  turns: Mapping[str, tuple[Array, Array]]  # Kind of layer -> cos, sin [B, T, 1, K/2].
  segments: Array | None = None  # [B, T]
  positions: Array | None = None  # [B, T] slots of the new tokens, with a cache.
  writes: Array | None = None  # [B, T] the same, past the end for padding.
  key: Array | None = None
  watch: tuple[str, ...] = ()
  edit: Callable[[Array, str, Array], Array] | None = None

  @property
  def plain(self) -> bool:
    """Whether someone wants to see or change the probabilities."""
    return 'attention' in self.watch or self.edit is not None


class _Tap(NamedTuple):
  """Hands a layer's values out and lets them be changed."""

  run: Pass
  layer: Array
  seen: dict[str, Array]

  def __call__(self, name: str, value: Array) -> Array:
    if self.run.edit is not None:
      value = self.run.edit(self.layer, name, value)
    if name in self.run.watch:
      self.seen[name] = value
    return value

  def drop(self, site: int, rate: float, x: Array) -> Array:
    """Dropout with a key of this layer and site."""
    key = self.run.key
    if key is not None:
      key = jax.random.fold_in(jax.random.fold_in(key, self.layer), site)
    return dropout(x, rate, key, self.run.rows)


class Attention(nn.Module):
  """Attention with its four products."""

  c: Settings
  kind: str

  @nn.compact
  def __call__(
    self, x: Array, run: Pass, tap: _Tap, stored: tuple[Array, Array] | None
  ) -> tuple[Array, tuple[Array, Array] | None]:
    """x [B, T, D] -> [B, T, D], and the stored (keys, values) with the new ones."""
    c, (D, H, K) = self.c, (self.c.embed, self.c.heads, self.c.head)
    q = self.heads_of(x, 'query', H, 'heads')
    k = self.heads_of(x, 'key', c.kv_heads, 'kv_heads')
    v = self.heads_of(x, 'value', c.kv_heads, 'kv_heads')
    if c.qk_norm:
      init = nn.initializers.zeros if c.norm_offset else nn.initializers.ones
      q = rms(q, weight(self, 'query_norm', (K,), ('norm',), init), c)
      k = rms(k, weight(self, 'key_norm', (K,), ('norm',), init), c)
    if self.kind in run.turns:
      q, k = rotate(q, *run.turns[self.kind]), rotate(k, *run.turns[self.kind])
    q, k, v = tap('query', q), tap('key', k), tap('value', v)
    if stored is not None and run.writes is not None:
      k, v = stored = write(stored[0], k, run.writes), write(stored[1], v, run.writes)
    y = tap('heads', self.attend(q, k.astype(q.dtype), v.astype(q.dtype), run, tap))
    y = checkpoint_name(shard(y, 'batch', 'length', 'act_heads', None), 'attention')
    w = weight(self, 'out', (H, K, D), ('heads', 'head', 'embed'), c.outer(H * K))
    return linear(y, w, 'BTHK,HKD->BTD', self.bias('out', c.out_bias, D)), stored

  def heads_of(self, x: Array, name: str, heads: int, axis: str) -> Array:
    """Queries, keys or values [B, T, heads, K]."""
    c = self.c
    shape = (c.embed, heads, c.head)
    w = weight(self, name, shape, ('embed', axis, 'head'), c.inner(c.embed))
    bias = self.bias(name, c.qkv_bias, heads, c.head)
    y = linear(x, w, 'BTD,DHK->BTHK', bias)
    return shard(y, 'batch', 'length', 'act_heads', None)

  def bias(self, name: str, wanted: bool, *shape: int) -> Array | None:
    """The bias of a product, if the settings give it one."""
    axes = {'query': ('heads', 'head'), 'out': ('embed',)}
    names = axes.get(name, ('kv_heads', 'head'))
    zeros = nn.initializers.zeros
    return weight(self, f'{name}_bias', shape, names, zeros) if wanted else None

  def attend(self, q: Array, k: Array, v: Array, run: Pass, tap: _Tap) -> Array:
    """Values summed by attention [B, T, H, K]."""
    c = self.c
    options: dict[str, Any] = dict(
      causal=c.causal,
      window=c.window if self.kind == 'local' else None,
      softcap=c.attention_softcap or None,
      scale=c.scale,
    )
    if run.positions is not None:
      slots = jnp.arange(k.shape[1])[None]
      options['positions'] = run.positions
      options['slots'] = jnp.broadcast_to(slots, k.shape[:2])
    elif run.segments is not None:
      options['segments'] = run.segments, run.segments
    if not run.plain and (run.key is None or not c.attention_dropout):
      return attention(q, k, v, **options)
    weights = tap('attention', probabilities(q, k, **options))
    weights = tap.drop(2, c.attention_dropout, weights)
    return mix(weights, v)


class Layer(nn.Module):
  """Attention and MLP, each added to the trunk."""

  c: Settings
  kind: str

  @nn.compact
  def __call__(
    self, x: Array, run: Pass, number: Array, stored: tuple[Array, Array] | None
  ) -> tuple[Array, tuple[Array, Array] | None, dict[str, Array]]:
    """x [B, T, D] -> x after the layer, its (keys, values), what was watched."""
    c = self.c
    tap = _Tap(run, number, {})
    block = Attention(c, self.kind, name='attention')
    y, stored = block(Norm(c, name='norm_attention')(x), run, tap, stored)
    if c.post_norms:
      y = Norm(c, name='post_attention')(y)
    x = x + tap('attention_out', tap.drop(0, c.dropout, y))
    y = Mlp(c, name='mlp')(Norm(c, name='norm_mlp')(x))
    if c.post_norms:
      y = Norm(c, name='post_mlp')(y)
    x = x + tap('mlp', tap.drop(1, c.dropout, y))
    return shard(tap('residual', x), 'batch', 'length', None), stored, tap.seen
