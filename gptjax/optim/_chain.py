"""What all optimizers share: clipping, weight decay, rates by pattern, averaging.

An update is, leaf by leaf, with u the direction that a Rule finds from the gradient
clipped to a global norm, r the leaf's rate (`rates`) and d its decay (`decays`):

  p <- p - lr r (u + weight_decay d p)         decoupled: Loshchilov, Hutter 2019

Which leaves are matrices is read from their logical axes, never from their number of
axes: a stacked bias [R, H, K] has three and is none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import tree
from gptjax.optim.schedules import Schedule
from gptjax.words import Array, Frozen, Mistake, Optimizer, Params, Tree

Assemble = Callable[[Params, Params], Params]  # (base, params) -> the whole tree.

STACKED = ('layers', 'experts')  # Axes along which matrices are stacked.
SCALAR: Any = ()  # The logical axes of a single number.
TABLES = ('vocab', 'position')  # Rows of such an axis are looked up, not multiplied.


class Rule(NamedTuple):
  """What tells optimizers apart: gradients to directions of descent, and its state."""

  init: Callable[[Params], Tree]
  update: Callable[[Params, Tree, Params], tuple[Tree, Tree]]
  axes: Callable[[Tree], Tree]  # Logical axes of params -> those of the state.
  rate: Callable[[str], float] = lambda path: 1.0  # Of a leaf, before `rates`.


class State(NamedTuple):
  """Of the chain: the rule's own, and the average of params ({} without)."""

  rule: Tree
  average: Params


def sides(
  names: Sequence[str | None],
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
  """The axes of a matrix's inputs and of its outputs; None: it is no matrix.

  ('layers', 'embed', 'heads', 'head') -> (1,), (2, 3). Weights name their inputs first,
  and heads with their size are one side.
  """
  groups: list[tuple[int, ...]] = []
  for i, name in enumerate(names):
    if name == 'head' and i and names[i - 1] in ('heads', 'kv_heads'):
      groups[-1] += (i,)
    elif name not in STACKED:
      groups.append((i,))
  return (groups[0], groups[1]) if len(groups) == 2 else None


def axes_by_path(axes: Tree) -> dict[str, tuple[str | None, ...]]:
  """Logical names of the axes of each leaf, by its path."""
  return tree.paths(axes, is_leaf=is_names)


def is_names(node: Any) -> bool:
  """Whether a node of a tree of axes is a leaf: a tuple of names."""
  return isinstance(node, tuple) and all(n is None or isinstance(n, str) for n in node)


def decay_factors(
  params: Params, axes: Tree, decays: Mapping[str, float] | None
) -> Tree:
  """Of the weight decay, for each leaf: `decays`, else 1 for matrices and 0 for others.

  Norms, biases and tables that are looked up (embeddings, positions) do not decay; an
  untied head [D, V] does.
  """
  names = axes_by_path(axes)

  def default(path: str) -> float:
    split = sides(names[path])
    return float(split is not None and names[path][split[0][0]] not in TABLES)

  return tree.select(params, decays or {}, 'c.optim.decays', default)


def rate_factors(params: Params, rates: Mapping[str, float] | None) -> Tree:
  """Of the learning rate, for each leaf: `rates`, else 1."""
  return tree.select(params, rates or {}, 'c.optim.rates', lambda path: 1.0)


def clip_by_norm(grads: Params, limit: float) -> Params:
  """Gradients scaled down to a global norm of at most `limit`; 0 leaves them alone."""
  if not limit:
    return grads
  # The norm is computed as the train step does, so that it is computed once.
  scale = jnp.minimum(1.0, limit / jnp.maximum(tree.norm(grads), 1e-12))
  return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)


def descend(
  p: Array, u: Array, lr: Array, rate: float | np.ndarray, decay: float | np.ndarray
) -> Array:
  """A leaf after its update; a factor that is the number 0 or 1 costs nothing."""
  step = u if np.ndim(decay) == 0 and not decay else u + decay * p
  return (p - lr * rate * step).astype(p.dtype)


def assembled(params: Params, frozen: Frozen, assemble: Assemble | None) -> Params:
  """The whole tree: trained params over frozen['base'], where there is one."""
  if 'base' not in frozen:
    return params
  if assemble is None:
    raise ValueError('frozen has a base, and the optimizer was made without assemble=')
  return assemble(frozen['base'], params)


def check(clip: float, weight_decay: float, ema: float = 0.0) -> None:
  """Raises Mistake for numbers out of range."""
  if not clip >= 0:
    raise Mistake(f'c.optim.clip={clip}: a global norm above 0, or 0 for no clipping.')
  if not weight_decay >= 0:
    raise Mistake(f'c.optim.weight_decay={weight_decay} is negative.')
  check_decays(ema=ema)


def check_decays(**decays: float) -> None:
  """Raises Mistake for the decay of a moving average that is out of range, by name."""
  for name, value in decays.items():
    if not 0 <= value < 1:
      raise Mistake(f'c.optim.{name}={value}: from 0 (no averaging) to below 1.')


def chain(
  rule: Rule,
  schedule: Schedule,
  *,
  axes: Tree,
  clip: float,
  weight_decay: float,
  decays: Mapping[str, float] | None,
  rates: Mapping[str, float] | None,
  ema: float,
  assemble: Assemble | None,
) -> Optimizer:
  """The optimizer of a rule.

  Args:
    rule: gradients to directions.
    schedule: the learning rate by updates done.
    axes: logical axes of the trained params, laid out like them.
    clip: global norm that gradients are scaled down to; 0 for no clipping.
    weight_decay: times the factors of `decays`.
    decays: factor of the weight decay by path pattern; matrices have 1, others 0.
    rates: factor of the learning rate by path pattern, such as {'embed/*': 0.1}.
    ema: `weights` are the exponential average of params with this decay, which grows
      to it as (1 + n) / (10 + n); 0 for none.
    assemble: (base, params) -> whole tree, for runs with a frozen base.

  Raises:
    Mistake: a number out of range; on init, a pattern that matches no leaf.
  """
  check(clip, weight_decay, ema)

  def init(params: Params) -> State:
    # Patterns that match nothing are to be told before the first step.
    decay_factors(params, axes, decays), rate_factors(params, rates)
    average = jax.tree.map(jnp.copy, params) if ema else {}
    return State(rule.init(params), average)

  def update(
    grads: Params, state: State, params: Params, step: Array
  ) -> tuple[Params, State]:
    directions, rule_state = rule.update(clip_by_norm(grads, clip), state.rule, params)
    lr = schedule(step)
    params = jax.tree.map(
      lambda p, u, r, d: descend(p, u, lr, r, weight_decay * d),
      params,
      directions,
      tree.map_paths(lambda path, r: r * rule.rate(path), rate_factors(params, rates)),
      decay_factors(params, axes, decays),
    )
    average = state.average
    if ema:
      keep = jnp.minimum(ema, (1.0 + step) / (10.0 + step))
      average = jax.tree.map(lambda a, p: a + (1.0 - keep) * (p - a), average, params)
    return params, State(rule_state, average)

  def weights(state: State, params: Params, frozen: Frozen) -> Params:
    return assembled(state.average if ema else params, frozen, assemble)

  def rate(step: Array) -> Array:
    return schedule(jnp.asarray(step) - 1)

  def state_axes(param_axes: Tree) -> State:
    return State(rule.axes(param_axes), param_axes if ema else {})

  return Optimizer(init, update, weights, rate, state_axes)
