"""Schedule-free AdamW: Defazio et al. 2024, The road less scheduled, algorithm 1.

Letters: y where gradients are taken (the params of the run), z the fast iterate, x its
average (what `weights` gives), c the share of the newest z in it, u the gradient over
its root mean square plus the decay of y.

  w = lr^2, c = w / sum of all w
  x <- (1 - c) x + c z',  z' = z - lr u,  y <- b1 x + (1 - b1) z'

x is not stored: x = (y - (1 - b1) z) / b1.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax.optim import _chain
from gptjax.optim.schedules import make_schedule
from gptjax.words import Array, Frozen, Mistake, Optimizer, Params, Tree


class State(NamedTuple):
  """Of schedule-free AdamW; z and nu are like params."""

  z: Params
  nu: Params  # Mean squares of gradients.
  count: Array  # Updates done.
  total: Array  # Of all w.
  largest: Array  # Rate so far.


def schedule_free(
  *,
  lr: float,
  steps: int,
  axes: Tree,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  warmup: float = 0,
  decay: str = 'constant',
  final: float = 0.0,
  cooldown: float = 0.2,
  weight_decay: float = 0.1,
  decays: Mapping[str, float] | None = None,
  rates: Mapping[str, float] | None = None,
  clip: float = 1.0,
  assemble: _chain.Assemble | None = None,
) -> Optimizer:
  """Schedule-free AdamW: as good at every step as a schedule that ends there.

  As in the authors' code, the largest rate so far stands in w, so that a warm-up weighs
  little. The other arguments are those of `_chain.chain`; there is no `ema`, for x is
  an average already.

  Raises:
    Mistake: as the chain, or b1 is 0.
  """
  if not 0 < b1 < 1:
    raise Mistake(f'c.optim.b1={b1}: schedule_free wants it above 0 and below 1.')
  _chain.check(clip, weight_decay)
  _chain.check_decays(b2=b2)
  schedule = make_schedule(
    lr, steps, warmup=warmup, decay=decay, final=final, cooldown=cooldown
  )

  def init(params: Params) -> State:
    _chain.decay_factors(params, axes, decays), _chain.rate_factors(params, rates)
    zeros = jax.tree.map(jnp.zeros_like, params)
    zero = jnp.zeros((), jnp.float32)
    z = jax.tree.map(jnp.copy, params)
    return State(z, zeros, jnp.zeros((), jnp.int32), zero, jnp.copy(zero))

  def update(
    grads: Params, state: State, params: Params, step: Array
  ) -> tuple[Params, State]:
    grads = _chain.clip_by_norm(grads, clip)
    rate = schedule(step)
    largest = jnp.maximum(state.largest, rate)
    total = state.total + largest**2
    c = jnp.where(total > 0, largest**2 / jnp.where(total > 0, total, 1.0), 0.0)
    unbias = 1.0 - b2 ** (state.count + 1)
    nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
    factors = _chain.rate_factors(params, rates)
    strengths = _chain.decay_factors(params, axes, decays)

    def change(y: Array, g: Array, v: Array, r: float, d: float) -> Array:
      return rate * r * (g / (jnp.sqrt(v / unbias) + eps) + weight_decay * d * y)

    # x' and z' put into y': no x is needed, and y - z cancels nowhere.
    moves = jax.tree.map(change, params, grads, nu, factors, strengths)
    y = jax.tree.map(
      lambda y, z, m: (y + c * (z - y) - (1 - b1 * (1 - c)) * m).astype(y.dtype),
      params,
      state.z,
      moves,
    )
    z = jax.tree.map(lambda z, m: (z - m).astype(z.dtype), state.z, moves)
    return y, State(z, nu, state.count + 1, total, largest)

  def weights(state: State, params: Params, frozen: Frozen) -> Params:
    x = jax.tree.map(lambda y, z: z + (y - z) / b1, params, state.z)
    return _chain.assembled(x, frozen, assemble)

  def state_axes(param_axes: Tree) -> State:
    return State(param_axes, param_axes, *(_chain.SCALAR,) * 3)

  return Optimizer(
    init, update, weights, lambda step: schedule(jnp.asarray(step) - 1), state_axes
  )
