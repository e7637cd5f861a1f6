"""Adafactor without momentum: Shazeer, Stern 2018, algorithms 4 and 5.

Letters: V mean square of gradients; of a matrix [I, O] (inputs, outputs) only the means
over rows and over columns are kept:

  V ~ rows [I] columns [O] / mean(rows),   u = g / sqrt(V),   u <- u / max(1, rms(u))

All means are taken within one layer, whatever is stacked: an update of stacked layers
equals the updates of each. With `relative`, u is scaled by the leaf's own root mean
square (at least 1e-3): `lr` is then a share of it, 1e-2 in the paper.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gptjax import tree
from gptjax.optim._chain import (
  SCALAR,
  STACKED,
  Assemble,
  Rule,
  axes_by_path,
  chain,
  is_names,
  sides,
)
from gptjax.optim.schedules import make_schedule
from gptjax.words import Array, Optimizer, Params, Tree


class State(NamedTuple):
  """Updates done; for each leaf the mean squares of its {rows, columns} or {all}."""

  count: Array
  squares: Tree


def adafactor(
  *,
  lr: float,
  steps: int,
  axes: Tree,
  relative: bool = True,
  power: float = 0.8,
  threshold: float = 1.0,
  warmup: float = 0,
  decay: str = 'cosine',
  final: float = 0.0,
  cooldown: float = 0.2,
  weight_decay: float = 0.0,
  decays: Mapping[str, float] | None = None,
  rates: Mapping[str, float] | None = None,
  clip: float = 0.0,
  ema: float = 0.0,
  assemble: Assemble | None = None,
) -> Optimizer:
  """Adafactor. What it shares with others: `schedules.make_schedule`, `_chain.chain`.

  Args:
    lr: share of a leaf's root mean square; absolute without `relative`.
    steps: of the run.
    axes: logical axes of params: they say what is stacked, and what a matrix.
    relative: scales updates by the root mean square of the leaf.
    power: the mean squares forget as 1 - (n + 1)^-power.
    threshold: root mean square that an update is cut down to.
  """
  return chain(
    _rule(axes, relative, power, threshold),
    make_schedule(
      lr, steps, warmup=warmup, decay=decay, final=final, cooldown=cooldown
    ),
    axes=axes,
    clip=clip,
    weight_decay=weight_decay,
    decays=decays,
    rates=rates,
    ema=ema,
    assemble=assemble,
  )


def _rule(axes: Tree, relative: bool, power: float, threshold: float) -> Rule:
  names = axes_by_path(axes)

  def layer(path: str) -> tuple[int, ...]:
    """The axes of a leaf within its layer."""
    return tuple(i for i, name in enumerate(names[path]) if name not in STACKED)

  def averaged(path: str) -> dict[str, tuple[int, ...]]:
    """The axes that each mean of a leaf is taken over."""
    split = sides(names[path])
    return {'rows': split[1], 'columns': split[0]} if split else {'all': ()}

  def init(params: Params) -> State:
    def zeros(path: str, p: Array) -> dict[str, Array]:
      return {
        key: jnp.zeros([1 if i in over else n for i, n in enumerate(p.shape)])
        for key, over in averaged(path).items()
      }

    return State(jnp.zeros((), jnp.int32), tree.map_paths(zeros, params))

  def update(grads: Params, state: State, params: Params) -> tuple[Params, State]:
    new = (state.count + 1.0) ** -power  # The share of this gradient; all at first.

    def remember(path: str, g: Array, kept: dict[str, Array]) -> dict[str, Array]:
      square = jnp.square(g.astype(jnp.float32)) + 1e-30
      means = {
        key: jnp.mean(square, axis=over, keepdims=True)
        for key, over in averaged(path).items()
      }
      return {key: (1 - new) * kept[key] + new * means[key] for key in kept}

    def direction(path: str, g: Array, kept: dict[str, Array], p: Array) -> Array:
      if 'all' in kept:
        u = g * jax.lax.rsqrt(kept['all'])
      else:
        over = averaged(path)['columns']
        share = kept['rows'] / jnp.mean(kept['rows'], axis=over, keepdims=True)
        u = g * jax.lax.rsqrt(share) * jax.lax.rsqrt(kept['columns'])
      u = u / jnp.maximum(1.0, _rms(u, layer(path)) / threshold)
      return u * jnp.maximum(_rms(p, layer(path)), 1e-3) if relative else u

    squares = tree.map_paths(remember, grads, state.squares)
    directions = tree.map_paths(direction, grads, squares, params)
    return directions, State(state.count + 1, squares)

  def state_axes(param_axes: Tree) -> State:
    found = {
      path: {
        key: tuple(None if i in over else n for i, n in enumerate(names[path]))
        for key, over in averaged(path).items()
      }
      for path in names
    }
    structure = jax.tree.structure(param_axes, is_leaf=is_names)
    return State(SCALAR, jax.tree.unflatten(structure, list(found.values())))

  return Rule(init, update, state_axes)


def _rms(x: Array, axes: tuple[int, ...]) -> Array:
  return jnp.sqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True))
