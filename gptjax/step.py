"""The train step: a batch's summed gradient, divided once, and a guarded update.

Step n of a run (n updates done before it) draws with fold_in(key, n), and takes the
learning rate of n. An update is skipped where the gradient is not finite, or no target
has weight: params and opt_state stay as they are and `bad` counts it, but the step
moves on, and with it the data and the learning rate.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gptjax import capacity, sharding, tree
from gptjax.models import lora
from gptjax.words import (
  Array,
  Batch,
  Frozen,
  Max,
  Metrics,
  Mistake,
  Model,
  Objective,
  Optimizer,
  Params,
  Sum,
  TrainState,
  Tree,
)

TrainStep = Callable[[TrainState, Batch, Frozen], tuple[TrainState, Metrics]]
Assemble = Callable[..., Params]  # (base, params, key, rows) -> the whole tree.


def make_train_step(
  model: Model,
  objective: Objective,
  optimizer: Optimizer,
  *,
  microbatches: int = 1,
  assemble: Assemble = lora.assemble,
  axes: Tree | None = None,
) -> TrainStep:
  """The pure function (state, batch, frozen) -> (state, metrics), for jax.jit.

  Gradients are taken for `state.params` only; the objective sees them assembled over
  frozen['base'], where there is one. How the batch is cut changes no number but by
  rounding. To the objective's metrics come: loss (nats, or what the objective sums);
  per step grad_norm before clipping, lr, weight (the sum divided by), and bad, 1 for a
  skipped update.

  Args:
    model: what the objective runs.
    objective: sums to minimise.
    optimizer: makes the update from the mean gradient.
    microbatches: parts that the batch is worked on in, one after the other. They
      divide the rows of a device (`check_batch`).
    assemble: (base, params, key, rows) -> the whole tree; rows and their key are for
      what it draws.
    axes: logical axes of params, where they are not the model's (adapters).
  """
  axes = model.axes if axes is None else axes

  def loss(
    params: Params, batch: Batch, frozen: Frozen, key: jax.Array
  ) -> tuple[Array, tuple[Array, Metrics]]:
    whole = params
    if 'base' in frozen:
      whole = assemble(frozen['base'], params, key, batch['rows'])
    total, weight, metrics = objective(model, whole, frozen, batch, key)
    return total, (weight, metrics)

  slope = jax.value_and_grad(loss, has_aux=True)

  def sums(params: Params, batch: Batch, frozen: Frozen, key: jax.Array) -> Any:
    """Loss, weight and metrics, then the gradient, summed over the batch."""
    if microbatches == 1:
      (total, (weight, metrics)), grads = slope(params, batch, frozen, key)
      return (total, weight, metrics), _lay(grads, axes)

    def one(grads: Params, part: Batch) -> tuple[Params, tuple[Any, ...]]:
      (total, (weight, metrics)), more = slope(params, part, frozen, key)
      return jax.tree.map(jnp.add, grads, _lay(more, axes)), (total, weight, metrics)

    zeros = _lay(jax.tree.map(jnp.zeros_like, params), axes)
    grads, (totals, weights, metrics) = jax.lax.scan(
      one, zeros, _cut(batch, microbatches)
    )
    return (totals.sum(0), weights.sum(0), _add_up(metrics)), grads

  def train_step(
    state: TrainState, batch: Batch, frozen: Frozen
  ) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(state.key, state.step)
    count = batch['weights'].shape[0]
    batch = {**batch, 'rows': jnp.arange(count, dtype=jnp.int32)}
    (total, weight, metrics), grads = sums(state.params, batch, frozen, key)
    scale = 1.0 / jnp.where(weight > 0, weight, 1.0)
    grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
    norm = tree.norm(grads)
    good = jnp.isfinite(norm) & (weight > 0)
    # A choice of each number by jnp.where would copy the moments first.
    params, opt_state = jax.lax.cond(
      good,
      lambda params, opt_state: optimizer.update(grads, opt_state, params, state.step),
      lambda params, opt_state: (params, opt_state),
      state.params,
      state.opt_state,
    )
    params, opt_state = _lay((params, opt_state), (axes, optimizer.axes(axes)))
    metrics = {
      **metrics,
      'loss': Sum(total, weight),
      'grad_norm': Sum(norm, 1.0),
      'lr': Sum(optimizer.rate(state.step + 1), 1.0),
      'weight': Sum(weight, 1.0),
      'bad': Sum(jnp.where(good, 0.0, 1.0), 1.0),
    }
    return TrainState(state.step + 1, params, opt_state, state.key), metrics

  return train_step


def _cut(batch: Batch, m: int) -> Batch:
  """[B, ...] to [m, B / m, ...]; row i goes to part i % m: none leaves its device."""
  return {k: x.reshape(-1, m, *x.shape[1:]).swapaxes(0, 1) for k, x in batch.items()}


def _lay(values: Tree, axes: Tree) -> Tree:
  """The values, laid out by the logical names of their axes."""
  return jax.tree.map(lambda x, names: sharding.shard(x, *names), values, axes)


def _add_up(metrics: Metrics) -> Metrics:
  """Metrics stacked over micro-batches."""
  return {
    name: Sum(jnp.sum(m.total, 0), jnp.sum(m.count, 0))
    if isinstance(m, Sum)
    else Max(jnp.max(m.value, 0))
    for name, m in metrics.items()
  }


def new_state(params: Params, optimizer: Optimizer, key: Array) -> TrainState:
  """The state before the first step; `key` is the run's."""
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key)


def init_state(
  key: jax.Array,
  model: Model,
  optimizer: Optimizer,
  *,
  params: Params | None = None,
  axes: Tree | None = None,
) -> TrainState:
  """The state before the first step, made where it will lie on the mesh in force.

  No device ever holds more of it than its part.

  Args:
    key: params and the run's own key are drawn from it.
    model: draws params.
    optimizer: draws its state from them.
    params: the ones to start from instead. The state takes them over: a train step
      that donates its state deletes them.
    axes: logical axes of params, where they are not the model's (adapters).
  """
  abstract = abstract_state(model, optimizer, params=params, axes=axes)
  layout = jax.tree.map(lambda x: x.sharding, abstract)
  make = functools.partial(_make_state, model, optimizer)
  return jax.jit(make, out_shardings=layout)(key, params)


def _make_state(
  model: Model, optimizer: Optimizer, key: jax.Array, params: Params | None
) -> TrainState:
  first, own = jax.random.split(key)
  return new_state(model.init(first) if params is None else params, optimizer, own)


def abstract_state(
  model: Model,
  optimizer: Optimizer,
  *,
  params: Params | None = None,
  axes: Tree | None = None,
) -> TrainState:
  """Shapes, dtypes and shardings of what `init_state` makes, without making it."""
  make = functools.partial(_make_state, model, optimizer)
  shapes = jax.eval_shape(make, jax.random.key(0), params)
  layout = state_layout(shapes, optimizer, model.axes if axes is None else axes)
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    shapes,
    layout,
  )


def state_layout(shapes: TrainState, optimizer: Optimizer, axes: Tree) -> TrainState:
  """The tree of shardings of a state: opt_state lies as its params do.

  Args:
    shapes: a state, or jax.eval_shape of one.
    optimizer: knows the axes of its state.
    axes: logical axes of params.
  """
  number: Any = ()
  names = TrainState(number, axes, optimizer.axes(axes), number)
  return sharding.layout(shapes, names)


def check_state(abstract: TrainState) -> None:
  """Raises Mistake where a state and the gradients of its params can never fit."""
  capacity.check_fits(
    capacity.tree_bytes((abstract, abstract.params)),
    f'c.model: {tree.count(abstract.params):,} parameters with gradients and '
    'optimizer state',
    'Take a smaller model (c.model.layers, embed, mlp, c.tokenizer.vocab) or cut it '
    'over more devices (c.mesh.fsdp, c.mesh.tensor)',
  )


def check_program(
  train_step: Any, state: TrainState, batch: Batch, frozen: Frozen, flops: float
) -> None:
  """Compiles a jitted train step that is large; its first call finds it compiled.

  A number that is kept for the backward pass costs some 100 FLOPs of the forward pass,
  so its `flops` tell which are small: those are left alone.

  Raises:
    Mistake: it wants more bytes than there are.
  """
  there = capacity.capacity()
  if there is None or flops / 10 < there:
    return
  compiled = train_step.lower(state, batch, frozen).compile()
  capacity.check_fits(
    capacity.program_bytes(compiled),
    'the train step',
    'Lower c.batch_size or c.mixture.length, raise c.microbatches, or take '
    "c.model.remat='full' or a smaller model",
  )


def check_batch(batch_size: int, microbatches: int = 1, length: int = 0) -> None:
  """Checks that rows divide over the devices of the mesh in force, and again in parts.

  Raises:
    Mistake: they do not; the line says which sizes would. Or a batch of rows of
      `length` tokens can never fit.
  """
  for key, value in (('batch_size', batch_size), ('microbatches', microbatches)):
    if value < 1:
      raise Mistake(f'c.{key}={value}: at least 1.')
  capacity.check_fits(
    5 * 4 * length * batch_size // jax.process_count(),  # Arrays of 4 bytes.
    f'c.batch_size={batch_size}: a batch of rows of {length} tokens',
    'Lower it, or c.mixture.length',
  )
  sizes = jax.sharding.get_abstract_mesh().shape
  axes = sharding.spec(('batch',), (math.prod(sizes.values()),))
  names = axes[0] if axes and axes[0] else ()
  names = (names,) if isinstance(names, str) else names
  devices = math.prod(sizes[name] for name in names)
  unit = devices * microbatches
  if batch_size % unit:
    below = batch_size // unit * unit
    near = f'{below} or {below + unit}' if below > 0 else f'{unit}'
    raise Mistake(
      f'c.batch_size={batch_size} is no multiple of {unit}: {devices} device(s) of the '
      f'mesh cut it ({", ".join(names) or "none"}) and c.microbatches={microbatches}; '
      f'take {near}.'
    )
