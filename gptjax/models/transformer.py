"""A transformer, its family chosen by config: GPT-2, GPT-Neo, Llama, Qwen, Gemma ...

Weights, by path (what a family lacks is not there):

  embed/{tokens [V, D], positions [S, D], kinds}
  layers/<start:stop:step>/attention/{query [R, D, H, K], key, value [R, D, G, K],
                                      out [R, H, K, D], *_bias, query_norm, key_norm}
  layers/<...>/mlp/{gate, up [R, D, F], down [R, F, D], *_bias}
  layers/<...>/{norm_attention, norm_mlp, post_attention, post_mlp}/{scale, bias}
  norm/{scale, bias}
  heads/{lm [D, V] if not tied, classes, values}

Letters: words.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from gptjax.lookup import nearest
from gptjax.models import dropout, rope
from gptjax.models.cache import new_cache
from gptjax.models.heads import Heads, make_heads
from gptjax.models.layer import WATCHED, Pass
from gptjax.models.layers import apply_layers, init_layers
from gptjax.models.linear import rows
from gptjax.models.norm import Norm
from gptjax.models.settings import Settings, make_settings
from gptjax.models.structure import groups
from gptjax.models.weight import apply, split, weight
from gptjax.sharding import shard
from gptjax.words import Batch, Cache, Mistake, Model, Params, Tree


def transformer(*, preset: str | None = None, **settings: Any) -> Model:
  """The model of a preset with settings on top; their names are Settings' fields.

  Raises:
    Mistake: an unknown preset or setting, or sizes that do not fit together.
  """
  c = make_settings(preset, settings)
  _, axes = _shapes(c)

  def cache(rows: int, length: int, dtype: Any = None) -> Cache:
    return new_cache(c, rows, length, dtype)

  return Model(
    init=jax.jit(lambda key: _init(c, key)[0]),
    hidden=_make_hidden(c),
    new_cache=cache,
    heads=make_heads(c),
    axes=axes,
    flops=lambda shape: flops(c, shape),
  )


class Embed(nn.Module):
  """The tables of tokens, positions and kinds."""

  c: Settings

  @nn.compact
  def __call__(
    self,
    tokens: Array,
    positions: Array,
    kinds: Array | None,
    prefix: Array | None = None,
    noise: Array | None = None,
  ) -> Array:
    """Tokens [B, T], after the prefix [B, P, D] if any -> [B, P + T, D]."""
    c, D = self.c, self.c.embed
    init = nn.initializers.normal(c.init_std)
    table = weight(self, 'tokens', (c.padded, D), ('vocab', 'embed'), init)
    x = rows(table, tokens, c.compute)
    if noise is not None:
      x = x + noise.astype(x.dtype)
    if c.embed_scale:
      x = x * jnp.asarray(D**0.5, x.dtype)
    if c.kinds:
      table = weight(self, 'kinds', (c.kinds, D), (None, 'embed'), init)
      kinds = jnp.zeros_like(tokens) if kinds is None else kinds
      x = x + rows(table, kinds, c.compute)
    if prefix is not None:
      x = jnp.concatenate([prefix.astype(x.dtype), x], 1)
    if c.positions == 'learned':
      table = weight(self, 'positions', (c.length, D), ('position', 'embed'), init)
      x = x + rows(table, positions, c.compute)
    if c.positions == 'sinusoidal':
      x = x + rope.sinusoids(positions, D).astype(x.dtype)
    return x


def _init(c: Settings, key: Array) -> tuple[Params, Tree]:
  layers, layer_axes = init_layers(c, key)
  embed_key, head_key = (jax.random.fold_in(key, c.layers + i) for i in range(2))
  one = jnp.zeros((1, 1), jnp.int32)
  x = jnp.zeros((1, 1, c.embed), jnp.float32)
  table = jnp.zeros((c.padded, c.embed), jnp.float32)
  made = {
    'embed': Embed(c).init(embed_key, one, one, one),
    'norm': Norm(c).init(key, x),
    'heads': Heads(c).init(head_key, x, table),
  }
  made = {name: value['params'] for name, value in made.items() if 'params' in value}
  params, axes = split(made)
  return {**params, 'layers': layers}, {**axes, 'layers': layer_axes}


def _shapes(c: Settings) -> tuple[Params, Tree]:
  """Abstract weights, and the names of their axes."""
  axes = None

  def init(key: Array) -> Params:
    nonlocal axes
    params, axes = _init(c, key)
    return params

  return jax.eval_shape(init, jax.random.key(0)), axes


def _make_hidden(c: Settings) -> Callable[..., Any]:
  def hidden(
    params: Params,
    batch: Batch,
    *,
    key: Array | None = None,
    cache: Cache | None = None,
    watch: Sequence[str] = (),
    edit: Callable[[Array, str, Array], Array] | None = None,
    noise: float = 0.0,
  ) -> tuple[Array, Cache | None, dict[str, Any]]:
    """Hidden states [B, T, D] of the tokens, the cache filled on, aux.

    A prefix [B, P, D] goes before the tokens: it is attended to and fills the cache,
    and no hidden states are returned for it. Given positions are the tokens' own,
    counted after the prefix.
    """
    for name in watch:
      if name not in WATCHED:
        raise Mistake(f'watch: no {name!r}: {nearest(name, WATCHED)}')
    run, places = _make_pass(c, batch, key, cache, tuple(watch), edit)
    inputs = (batch['tokens'], places, batch.get('kinds'), batch.get('prefix'))
    x = apply(Embed(c), params['embed'], *inputs, _noise(c, batch, run, noise))
    if key is not None:
      x = dropout.dropout(x, c.dropout, jax.random.fold_in(key, c.layers), run.rows)
    x = shard(x, 'batch', 'length', None)
    x, keys, values, seen = apply_layers(c, params['layers'], x, run, cache)
    if cache is not None and run.writes is not None:
      filled = jnp.sum(run.writes < _slots(cache), 1, dtype=jnp.int32)
      cache = Cache(keys, values, cache.lengths + filled)
    x = apply(Norm(c), params['norm'], x)
    if 'prefix' in batch:
      x = x[:, batch['prefix'].shape[1] :]
    return x, cache, {'watch': seen} if watch else {}

  return hidden


def _noise(c: Settings, batch: Batch, run: Pass, alpha: float) -> Array | None:
  if not alpha or run.key is None:
    return None
  key = jax.random.fold_in(run.key, c.layers + 1)
  shape = (*batch['tokens'].shape, c.embed)
  return dropout.noise(alpha, key, run.rows, batch.get('segments'), shape)


def _slots(cache: Cache) -> int:
  store = next(iter(cache.keys.values()))
  return (store[0] if isinstance(store, tuple) else store).shape[-3]


def _make_pass(
  c: Settings,
  batch: Batch,
  key: Array | None,
  cache: Cache | None,
  watch: tuple[str, ...],
  edit: Callable[[Array, str, Array], Array] | None,
) -> tuple[Pass, Array]:
  """What the layers share, and the positions of prefix and tokens."""
  arrays: dict[str, Array] = {k: jnp.asarray(v) for k, v in batch.items()}
  B, T = arrays['tokens'].shape
  P = arrays['prefix'].shape[1] if 'prefix' in arrays else 0
  steps = jnp.arange(P + T, dtype=jnp.int32)[None]  # [1, P + T]
  segments = arrays.get('segments')
  if segments is not None and P:
    segments = jnp.concatenate([jnp.repeat(segments[:, :1], P, 1), segments], 1)
  slots = writes = None
  if cache is not None:
    slots = jnp.asarray(cache.lengths)[:, None] + steps
    writes = slots
    if segments is not None:
      writes = jnp.where(segments != 0, slots, _slots(cache))
    segments = None
  places = steps if slots is None else slots
  if 'positions' in arrays:
    own = arrays['positions'] + P
    lead = jnp.broadcast_to(places[:, :P], (B, P))
    places = jnp.concatenate([lead, own], 1)
  turns = {}
  if c.positions == 'rope':
    for kind in set(c.pattern):
      own = kind == 'local' and c.local_theta
      theta, scaling = (c.local_theta, None) if own else (c.theta, c.rope)
      turns[kind] = rope.tables(places, c.head, theta, scaling)
  draws = arrays.get('rows')
  draws = jnp.arange(B) if draws is None else draws
  return Pass(draws, turns, segments, slots, writes, key, watch, edit), places


def flops(c: Settings, shape: Sequence[int]) -> float:
  """Of the matrix products of one forward pass over [B, T], lm head included.

  A product of n weights costs 2 n a token; the embedding's look-up costs nothing. A
  pair of query and visible key costs 4 K a head: 2 K for the score, 2 K for the sum.
  Token t sees min(t, window) keys if causal, so about half of T in a global layer.
  """
  B, T = shape
  D, H, G, K, F = c.embed, c.heads, c.kv_heads, c.head, c.mlp
  layer = D * K * (2 * H + 2 * G) + D * F * (3 if c.gated else 2)
  outputs = {'lm': c.padded, 'classes': c.classes, 'values': 1}
  weights = c.layers * layer + D * sum(outputs[name] for name in c.outputs)
  pairs = {}
  for kind in set(c.pattern):
    window = min(c.window if kind == 'local' else T, T)
    early = window * (window + 1) / 2
    behind = early + (T - window) * window
    pairs[kind] = behind if c.causal else 2 * behind - T
  seen = sum(pairs[kind] * g.repeats for g in groups(c) for kind in g.kinds)
  return float(2 * weights * B * T + 4 * H * K * B * seen)
