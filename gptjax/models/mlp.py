"""The MLP of a layer, plain or gated (Shazeer 2020).

Letters: D width of the trunk, F width of the MLP.
"""

from collections.abc import Callable

import jax
from flax import linen as nn
from jax import Array

from gptjax.models.linear import linear
from gptjax.models.settings import Settings
from gptjax.models.weight import weight
from gptjax.sharding import shard

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'silu': jax.nn.silu,
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_tanh': jax.nn.gelu,
  'relu': jax.nn.relu,
  'relu2': lambda x: jax.nn.relu(x) ** 2,  # So et al. 2021.
}


class Mlp(nn.Module):
  """Two products with an activation between, or three when gated."""

  c: Settings

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[B, T, D] -> [B, T, D]."""
    c, D, F = self.c, self.c.embed, self.c.mlp

    def into(name: str) -> Array:
      w = weight(self, name, (D, F), ('embed', 'mlp'), c.inner(D))
      return linear(x, w, 'BTD,DF->BTF', self.bias(name, F, 'mlp'))

    y = ACTIVATIONS[c.activation](into('gate' if c.gated else 'up'))
    if c.gated:
      y = y * into('up')
    y = shard(y, 'batch', 'length', 'act_mlp')
    w = weight(self, 'down', (F, D), ('mlp', 'embed'), c.outer(F))
    return linear(y, w, 'BTF,FD->BTD', self.bias('down', D, 'embed'))

  def bias(self, name: str, size: int, axis: str) -> Array | None:
    """The bias of the product `name`, if the settings give it one."""
    if not self.c.mlp_bias:
      return None
    return weight(self, f'{name}_bias', (size,), (axis,), nn.initializers.zeros)
