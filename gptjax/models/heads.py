"""What stands on the trunk: logits of the next token, of classes, a value.

Letters: D width, V vocabulary padded, C classes.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from gptjax.models.linear import linear
from gptjax.models.settings import Settings
from gptjax.models.weight import apply, weight
from gptjax.words import Params


class Heads(nn.Module):
  """Weights and outputs of the heads that the settings name."""

  c: Settings

  @nn.compact
  def __call__(
    self, hidden: Array, tokens: Array, only: str | None = None
  ) -> dict[str, Array]:
    """Outputs by name from hidden [..., D], all in float32; `only` one, or all.

    lm: logits [..., V], -inf past the vocabulary; classes: [..., C]; values: [...].
    """
    makers = {'lm': self.lm, 'classes': self.classes, 'values': self.values}
    wanted = self.c.outputs if only is None else (only,)
    return {name: makers[name](hidden, tokens) for name in wanted}

  def lm(self, hidden: Array, tokens: Array) -> Array:
    """Logits of the next token; `tokens` [V, D] is the embedding's table."""
    c, (D, V) = self.c, (self.c.embed, self.c.padded)
    if c.tied:
      logits = linear(hidden, tokens, '...D,VD->...V', dtype=jnp.float32)
    else:
      w = weight(self, 'lm', (D, V), ('embed', 'vocab'), c.inner(D))
      logits = linear(hidden, w, '...D,DV->...V', dtype=jnp.float32)
    if c.final_softcap:
      logits = c.final_softcap * jnp.tanh(logits / c.final_softcap)
    if c.vocab == V:
      return logits
    used = (jnp.arange(V) < c.vocab).reshape((1,) * (logits.ndim - 1) + (V,))
    return jnp.where(used, logits, -jnp.inf)

  def classes(self, hidden: Array, tokens: Array) -> Array:
    """Logits of classes."""
    del tokens
    c, (D, C) = self.c, (self.c.embed, self.c.classes)
    w = weight(self, 'classes', (D, C), ('embed', None), c.inner(D))
    bias = weight(self, 'classes_bias', (C,), (None,), nn.initializers.zeros)
    return linear(hidden, w, '...D,DC->...C', bias, dtype=jnp.float32)

  def values(self, hidden: Array, tokens: Array) -> Array:
    """One number for each hidden state: a value or a reward."""
    del tokens
    c, D = self.c, self.c.embed
    w = weight(self, 'values', (D, 1), ('embed', None), c.inner(D))
    bias = weight(self, 'values_bias', (1,), (None,), nn.initializers.zeros)
    return linear(hidden, w, '...D,DC->...C', bias, dtype=jnp.float32)[..., 0]


def make_heads(c: Settings) -> dict[str, Callable[..., Array]]:
  """Each head as a function of (params, hidden)."""

  def make(name: str) -> Callable[[Params, Array], Array]:
    def head(params: Params, hidden: Array) -> Array:
      tokens = params['embed']['tokens']
      return apply(Heads(c), params.get('heads', {}), hidden, tokens, name)[name]

    return head

  return {name: make(name) for name in c.outputs}
