"""The generation engine: ids in, ids out, over a fixed number of slots.

A request joins a free slot between two steps and leaves it when it ends (continuous
batching: Yu et al. 2022, Orca). `prefill` fills the cache with all of a prompt but its
last token; `step` takes the last token of every slot on, draws the next. What a request
draws does not depend on its companions: shapes are functions of its own length alone.

N slots, M prompts prefilled at a time, S cache slots of a row, V vocabulary, padded.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import sharding, tree
from gptjax.generate import sampling
from gptjax.generate.sampling import Settings
from gptjax.models.layers import unrolls, unstack_layers
from gptjax.words import Array, Batch, Cache, Mistake, Model, Params

SHORTEST = 16  # Tokens of the smallest prefill; larger ones are powers of two.


class State(NamedTuple):
  """What the slots hold, on the device."""

  cache: Cache
  tokens: jax.Array  # [N] int32, the last token of each, not yet in the cache.
  drawn: jax.Array  # [N] int32, tokens that the request has drawn.
  left: jax.Array  # [N] int32, tokens that it may still draw; 0: the slot is idle.
  seen: jax.Array  # [N, V] bool, tokens of the prompt and the answer.
  settings: Settings  # [N] each.


class Engine(NamedTuple):
  """Jitted functions over weights laid out for decoding; made by `make_engine`."""

  weights: Params
  slots: int
  length: int  # Tokens of prompt and answer that fit a slot.
  chunk: int  # Tokens of the largest prefill.
  rows: int  # Prompts prefilled at a time.
  vocab: int
  prepare: Callable[[Params], Params]
  new_state: Callable[[], State]
  new_rows: Callable[[int], Cache]  # Room for `rows` prompts of so many tokens.
  extend: Callable[[Params, Cache, Array, Array], Cache]
  join: Callable[..., State]
  step: Callable[[Params, State], tuple[State, jax.Array, jax.Array]]


def make_engine(
  model: Model,
  weights: Params,
  *,
  slots: int,
  length: int,
  dtype: Any = None,
  chunk: int = 512,
  rows: int | None = None,
) -> Engine:
  """An engine for a model with these weights.

  Args:
    model: with a head 'lm'.
    weights: of the model.
    slots: answers that are made at a time.
    length: tokens of prompt and answer together, at most.
    dtype: of the cache and of matrices; None: float32 on a CPU, else bfloat16.
    chunk: tokens of a prompt taken at a time: bounds the memory of long ones.
    rows: prompts prefilled at a time; None: 1 on a CPU, else up to 8.

  Raises:
    Mistake: a model without the head.
  """
  if 'lm' not in model.heads:
    raise Mistake(f"a head 'lm' writes text: the model has {[*model.heads]}.")
  cpu = sharding.platform() == 'cpu'
  dtype = jnp.dtype(dtype or (jnp.float32 if cpu else jnp.bfloat16))
  rows = rows or (1 if cpu else min(slots, 8))

  apart = unrolls(model)

  @jax.jit
  def prepare(weights: Params) -> Params:
    return unstack_layers(_cast(weights, dtype)) if apart else _cast(weights, dtype)

  weights = prepare(weights)
  vocab = _vocab(model, weights, dtype)

  @jax.jit
  def new_state() -> State:
    none = jnp.zeros(slots, jnp.int32)
    return State(
      cache=model.new_cache(slots, length, dtype),
      tokens=none,
      drawn=none,
      left=none,
      seen=jnp.zeros((slots, vocab), bool),
      settings=Settings(*(jnp.full(slots, x) for x in Settings().arrays())),
    )

  def new_rows(length: int) -> Cache:
    return model.new_cache(rows, length, dtype)

  def extend(weights: Params, cache: Cache, tokens: Array, segments: Array) -> Cache:
    batch: Batch = {'tokens': tokens, 'segments': segments}  # [M, T]
    _, filled, _ = model.hidden(weights, batch, cache=cache)
    assert filled is not None
    return filled

  return Engine(
    weights=weights,
    slots=slots,
    length=length,
    chunk=chunk,
    rows=rows,
    vocab=vocab,
    prepare=prepare,
    new_state=new_state,
    new_rows=jax.jit(new_rows, static_argnums=0),
    extend=jax.jit(extend, donate_argnums=1),
    join=jax.jit(_join, donate_argnums=0),
    step=jax.jit(_make_step(model), donate_argnums=1),
  )


def with_weights(engine: Engine, weights: Params) -> Engine:
  """The engine with other weights of the same model; nothing is compiled again."""
  return engine._replace(weights=engine.prepare(weights))


def _make_step(
  model: Model,
) -> Callable[[Params, State], tuple[State, jax.Array, jax.Array]]:
  def step(weights: Params, state: State) -> tuple[State, jax.Array, jax.Array]:
    """One token for every busy slot: the state after, ids [N], log-probabilities."""
    busy = state.left > 0
    batch: Batch = {
      'tokens': state.tokens[:, None],
      'segments': busy.astype(jnp.int32)[:, None],
    }
    hidden, cache, _ = model.hidden(weights, batch, cache=state.cache)
    logits = model.heads['lm'](weights, hidden[:, 0]).astype(jnp.float32)  # [N, V]
    ids, logprobs = sampling.sample(logits, state.seen, state.drawn, state.settings)
    assert cache is not None
    state = State(
      cache=cache,
      tokens=ids,
      drawn=state.drawn + 1,
      left=jnp.maximum(state.left - 1, 0),
      seen=state.seen.at[jnp.arange(ids.shape[0]), ids].set(True),
      settings=state.settings,
    )
    return state, sharding.shard(ids, None), sharding.shard(logprobs, None)

  return step


def _join(
  state: State,
  rows: Cache,
  row: jax.Array,
  slot: jax.Array,
  token: jax.Array,
  left: jax.Array,
  seen: jax.Array,
  settings: Settings,
) -> State:
  """Puts a prefilled row into a slot: its cache, its last token [] and settings []."""

  def place(into: jax.Array, rows: jax.Array) -> jax.Array:
    axis = into.ndim - 4  # [N, S, G, K], or stacked over layers.
    one = jax.lax.dynamic_slice_in_dim(rows, row, 1, axis)
    start = (0,) * axis + (slot,) + (0,) * 3
    return jax.lax.dynamic_update_slice(into, one, start)

  cache = Cache(
    keys=jax.tree.map(place, state.cache.keys, rows.keys),
    values=jax.tree.map(place, state.cache.values, rows.values),
    lengths=jnp.asarray(state.cache.lengths).at[slot].set(rows.lengths[row]),
  )
  return State(
    cache=cache,
    tokens=state.tokens.at[slot].set(token),
    drawn=state.drawn.at[slot].set(0),
    left=state.left.at[slot].set(left),
    seen=state.seen.at[slot].set(seen),
    settings=jax.tree.map(lambda x, one: x.at[slot].set(one), state.settings, settings),
  )


def _cast(weights: Params, dtype: Any) -> Params:
  """Matrices in the dtype; norms, biases and scales of quantised ones as they are."""

  def one(path: str, x: jax.Array) -> jax.Array:
    small = path.endswith(('scale', 'scales', 'bias', 'norm'))
    return x if small or not jnp.issubdtype(x.dtype, jnp.floating) else x.astype(dtype)

  return tree.map_paths(one, weights)


def _vocab(model: Model, weights: Params, dtype: Any) -> int:
  def logits(weights: Params) -> Array:
    batch: Batch = {'tokens': jnp.zeros((1, 1), jnp.int32)}
    batch['segments'] = jnp.ones((1, 1), jnp.int32)
    cache = model.new_cache(1, SHORTEST, dtype)
    hidden, _, _ = model.hidden(weights, batch, cache=cache)
    return model.heads['lm'](weights, hidden)

  return jax.eval_shape(logits, weights).shape[-1]


def plan(engine: Engine, count: int) -> tuple[int, ...]:
  """The sizes of the prefills that `count` tokens take: a function of it alone."""
  sizes, start = [], 0
  while start < count:
    size = SHORTEST
    while size < min(count - start, engine.chunk):
      size *= 2
    sizes.append(min(size, engine.chunk, engine.length - start))
    start += sizes[-1]
  return tuple(sizes)


def prefill(
  engine: Engine, sizes: Sequence[int], prompts: Sequence[Sequence[int]]
) -> Cache:
  """The cache [M] after all but the last tokens of up to M prompts of one plan."""
  total = min(SHORTEST, engine.length) if len(sizes) < 1 else sizes[0]
  rows = engine.new_rows(total if len(sizes) < 2 else engine.length)
  start = 0
  for size in sizes:
    tokens = np.zeros((engine.rows, size), np.int32)
    segments = np.zeros((engine.rows, size), np.int32)
    for row, ids in enumerate(prompts):
      part = ids[start : min(start + size, len(ids) - 1)]
      tokens[row, : len(part)] = part
      segments[row, : len(part)] = 1
    rows = engine.extend(engine.weights, rows, tokens, segments)
    start += size
  return rows
