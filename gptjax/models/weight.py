"""A weight is one line: its name, shape, logical names of its axes, initializer.

Initial values, abstract shapes and the tree of axis names all come from that line:

  w = weight(self, 'up', (D, F), ('embed', 'mlp'), init)
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array

from gptjax.words import Params, Tree

Init = Callable[..., jax.Array]  # (key, shape, dtype) -> array


class _Named(struct.PyTreeNode, nn.meta.AxisMetadata):
  """An array and the names of its axes; lives from a block's init to `split` only."""

  value: Any
  names: tuple[str | None, ...] = struct.field(pytree_node=False)

  def unbox(self) -> Any:
    """The array."""
    return self.value

  def replace_boxed(self, val: Any) -> '_Named':
    """The same names around another array."""
    return self.replace(value=val)

  def add_axis(self, index: int, params: dict[Any, Any]) -> '_Named':
    """A name for an axis that a transform of Linen would stack along."""
    return self.replace(names=(*self.names[:index], 'layers', *self.names[index:]))

  def remove_axis(self, index: int, params: dict[Any, Any]) -> '_Named':
    """The names without the one of that axis."""
    return self.replace(names=(*self.names[:index], *self.names[index + 1 :]))


def weight(
  module: nn.Module,
  name: str,
  shape: Sequence[int],
  axes: tuple[str | None, ...],
  init: Init,
) -> Any:
  """The module's weight, float32: an array, or the Lora or Int8 put in its place."""
  if module.has_variable('params', name):
    return module.get_variable('params', name)
  return module.param(name, lambda key: _Named(init(key, shape, jnp.float32), axes))


def apply(module: nn.Module, params: Params, *args: Any) -> Any:
  """What the module gives for args, with its weights in `params`."""
  return module.apply({'params': params}, *args)


def split(tree: Tree, *outer: str) -> tuple[Tree, Tree]:
  """What Linen's init returned -> (arrays, names of their axes after `outer`)."""
  is_named = lambda x: isinstance(x, _Named)  # noqa: E731
  arrays = jax.tree.map(lambda x: x.value, tree, is_leaf=is_named)
  names = jax.tree.map(lambda x: (*outer, *x.names), tree, is_leaf=is_named)
  return arrays, names


def lift(w: Array, ndim: int) -> Array:
  """`w` with leading axes of size 1, to broadcast against `ndim` axes."""
  return w.reshape((1,) * (ndim - w.ndim) + w.shape)
