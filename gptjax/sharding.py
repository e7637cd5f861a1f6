"""The mesh, the table from logical axis names to mesh axes, and layouts of trees.

FSDP, tensor and data parallelism are rows of the table, not code paths: a weight names
its axes ('embed', 'heads', ...), an activation names its own ('batch', 'length', ...),
and the rules of the run say which mesh axes each is cut over.
"""

import contextlib
import contextvars
import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gptjax.lookup import nearest
from gptjax.words import Array, Batch, Mistake, Tree

# Logical axis -> mesh axes. A mesh axis serves a tensor once, at the first axis of the
# tensor that names it. The names of activations first, then those of weights.
RULES: dict[str, tuple[str, ...]] = {
  'batch': ('data', 'fsdp'),
  'length': (),
  'act_heads': ('tensor',),
  'act_mlp': ('tensor',),
  'act_vocab': ('tensor',),
  'layers': (),
  'embed': ('fsdp',),
  'vocab': ('tensor',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'head': (),
  'mlp': ('tensor',),
  'position': (),
  'norm': (),
}


class _Place(NamedTuple):
  mesh: Mesh
  rules: Mapping[str, tuple[str, ...]]
  platform: str


_PLACE: contextvars.ContextVar[_Place | None] = contextvars.ContextVar('place')


def make_mesh(axes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh of Auto axes over all devices; one size may be -1: all that remain.

  Raises:
    Mistake: the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  for name, size in axes.items():
    if size == 0 or size < -1:
      raise Mistake(f'c.mesh.{name}={size}: a size is at least 1, or -1 for the rest.')
  free = [name for name, size in axes.items() if size == -1]
  fixed = math.prod(size for size in axes.values() if size != -1)
  wanted = ', '.join(f'{k}={v}' for k, v in axes.items())
  if len(free) > 1:
    raise Mistake(f'c.mesh ({wanted}): only one axis may be -1, not {free}.')
  if len(devices) % fixed or (not free and fixed != len(devices)):
    raise Mistake(
      f'c.mesh ({wanted}) wants {fixed} devices or a multiple; there are '
      f'{len(devices)} ({devices[0].platform}).'
    )
  sizes = [len(devices) // fixed if size == -1 else size for size in axes.values()]
  return jax.make_mesh(
    tuple(sizes), tuple(axes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices
  )


def make_rules(changes: Mapping[str, Any] | None = None) -> dict[str, tuple[str, ...]]:
  """The table with changes: {'embed': ('fsdp', 'data')}; a string is one axis."""
  rules = dict(RULES)
  for name, value in (changes or {}).items():
    if name not in rules:
      raise Mistake(f'c.rules has no axis {name!r}: {nearest(name, rules)}')
    rules[name] = (value,) if isinstance(value, str) else tuple(value or ())
  return rules


@contextlib.contextmanager
def use(
  mesh: Mesh,
  rules: Mapping[str, tuple[str, ...]] | None = None,
  platform: str | None = None,
) -> Generator[Mesh]:
  """Installs the mesh: the one global thing. `platform` names another to lower for."""
  platform = platform or mesh.devices.flat[0].platform
  token = _PLACE.set(_Place(mesh, dict(rules or RULES), platform))
  try:
    with jax.set_mesh(mesh):
      yield mesh
  finally:
    _PLACE.reset(token)


def platform() -> str:
  """'cpu', 'tpu' or 'gpu': what the program at hand is made for."""
  place = _PLACE.get(None)
  return place.platform if place else jax.default_backend()


def is_alone() -> bool:
  """Whether the program at hand is for a single device."""
  place = _PLACE.get(None)
  return place is None or place.mesh.size == 1


def spec(names: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
  """Mesh axes of a tensor with these logical names.

  A mesh axis is used once a tensor, at the first name that asks for it, and only where
  it divides the size; an axis of size 1 is left out.
  """
  place = _PLACE.get(None)
  if place is None:
    return PartitionSpec()
  used: set[str] = set()
  entries = []
  for name, size in zip(names, shape, strict=True):
    axes = []
    for axis in place.rules.get(name, ()) if name else ():
      cut = place.mesh.shape.get(axis, 1)
      if cut > 1 and axis not in used and size % (cut * _cuts(place.mesh, axes)) == 0:
        axes.append(axis)
        used.add(axis)
    entries.append(tuple(axes) if len(axes) > 1 else axes[0] if axes else None)
  return PartitionSpec(*entries)


def _cuts(mesh: Mesh, axes: Sequence[str]) -> int:
  return math.prod(mesh.shape[axis] for axis in axes)


def shard(x: jax.Array, *names: str | None) -> jax.Array:
  """Constrains an activation to the rules; without a mesh, or with one device, x."""
  if is_alone():
    return x
  return jax.lax.with_sharding_constraint(x, spec(names, x.shape))


def layout(abstract: Tree, axes: Tree) -> Tree:
  """The tree of NamedShardings for arrays (or their shapes) with these logical axes."""
  place = _PLACE.get(None)
  if place is None:
    raise ValueError('layout() wants a mesh in force: with sharding.use(mesh).')

  def one(leaf: Any, names: Sequence[str | None]) -> NamedSharding:
    return NamedSharding(place.mesh, spec(names, leaf.shape))

  return jax.tree.map(one, abstract, axes)


def put(batch: Batch) -> Batch:
  """Rows of this host, laid out over the mesh as one global batch."""
  place = _PLACE.get(None)
  if place is None:
    return {name: jax.numpy.asarray(x) for name, x in batch.items()}
  hosts = jax.process_count()

  def one(x: Array) -> jax.Array:
    shape = (x.shape[0] * hosts, *x.shape[1:])
    names = ('batch', *(None,) * (x.ndim - 1))
    sharding = NamedSharding(place.mesh, spec(names, shape))
    return jax.make_array_from_process_local_data(sharding, np.asarray(x), shape)

  return {name: one(x) for name, x in batch.items()}
