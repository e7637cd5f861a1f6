"""Attention: queries against keys, a softmax in float32, values summed.

Letters: B rows, T queries, S slots of keys, H query heads, G key heads, K head size,
M = H / G query heads that share a key head.
"""

import jax
import jax.numpy as jnp

from gptjax.words import Array


def attention(
  q: Array,  # [B, T, H, K]
  k: Array,  # [B, S, G, K]
  v: Array,  # [B, S, G, K]
  *,
  positions: Array | None = None,  # [B, T] int32 of the queries
  slots: Array | None = None,  # [B, S] int32 of the keys
  segments: tuple[Array, Array] | None = None,  # ([B, T], [B, S])
  causal: bool = True,
  window: int | None = None,
  softcap: float | None = None,
  scale: float,
  form: str | None = None,
) -> Array:
  """Sums of the values of visible keys [B, T, H, K], in the dtype of q.

  A key is visible iff slot <= position (causal), position - slot < window, and both are
  of one segment; a query that sees no key gets zeros.
  """
  del form
  B, T, H, K = q.shape
  S, G = k.shape[1:3]
  q = q.reshape(B, T, G, H // G, K)
  scores = jnp.einsum('BTGMK,BSGK->BGMTS', q, k, preferred_element_type=jnp.float32)
  scores = scores * scale
  if softcap:
    scores = softcap * jnp.tanh(scores / softcap)
  at = jnp.arange(T)[None] if positions is None else positions
  to = jnp.arange(S)[None] if slots is None else slots
  distance = at[:, :, None] - to[:, None, :]  # [B, T, S]
  seen = distance >= 0 if causal else jnp.ones_like(distance, bool)
  if window:
    seen &= jnp.abs(distance) < window
  if segments is not None:
    seen = seen & (segments[0][:, :, None] == segments[1][:, None, :])
  seen = seen[:, None, None]
  weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), -1)
  weights = jnp.where(seen, weights, 0).astype(v.dtype)
  return jnp.einsum('BGMTS,BSGK->BTGMK', weights, v).reshape(B, T, H, K)
