"""Attention by the book: the oracle of the other forms, and where one looks inside.

[B, H, T, S] exists whole here, so it serves short rows, a few queries against a cache,
and whoever wants to see the probabilities. Letters as in gptjax/words.py.

Source: Vaswani et al. 2017, eq. 1; grouped queries: Ainslie et al. 2023; soft cap:
Gemma 2 report, 2024, section 2.
"""

import jax
import jax.numpy as jnp

HIDDEN = -1e30  # A score that no softmax sees; finite, so that no NaN can arise.

Segments = tuple[jax.Array, jax.Array]


def visible(
  positions: jax.Array,
  slots: jax.Array,
  segments: Segments | None = None,
  *,
  causal: bool = True,
  window: int | None = None,
) -> jax.Array:
  """Which keys (slots [B or 1, S]) each query (positions [B or 1, T]) sees: [., T, S].

  A key of its own segment that is not ahead (if causal) and less than `window` away.
  """
  distance = positions[:, :, None] - slots[:, None, :]
  mask = distance >= 0 if causal else jnp.ones_like(distance, bool)
  if window is not None:
    mask &= distance < window if causal else jnp.abs(distance) < window
  if segments is not None:
    mask &= segments[0][:, :, None] == segments[1][:, None, :]
  return mask


def cap(scores: jax.Array, softcap: float | None) -> jax.Array:
  """Squeezes scores smoothly into (-softcap, softcap)."""
  return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def probabilities(
  q: jax.Array,
  k: jax.Array,
  *,
  positions: jax.Array | None = None,
  slots: jax.Array | None = None,
  segments: Segments | None = None,
  causal: bool = True,
  window: int | None = None,
  softcap: float | None = None,
  scale: float,
) -> jax.Array:
  """How much of each key a query takes, in float32; zeros where it sees none.

  Args: as of `attention`.

  Returns:
    [B, H, T, S].
  """
  B, T, H, K = q.shape
  S, G = k.shape[1:3]
  positions = jnp.arange(T)[None] if positions is None else positions
  slots = jnp.arange(S)[None] if slots is None else slots
  q = q.reshape(B, T, G, H // G, K)
  scores = jnp.einsum('BTGRK,BSGK->BGRTS', q, k, preferred_element_type=jnp.float32)
  mask = visible(positions, slots, segments, causal=causal, window=window)
  mask = mask[:, None, None]  # [B, 1, 1, T, S]
  scores = jnp.where(mask, cap(scores * scale, softcap), HIDDEN)
  found = jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0)
  return found.reshape(B, H, T, S)


def mix(p: jax.Array, v: jax.Array) -> jax.Array:
  """Values [B, S, G, K] mixed by probabilities [B, H, T, S]: [B, T, H, K]."""
  B, H, T, S = p.shape
  G, K = v.shape[2:]
  p = p.reshape(B, G, H // G, T, S).astype(v.dtype)
  out = jnp.einsum('BGRTS,BSGK->BTGRK', p, v, preferred_element_type=jnp.float32)
  return out.reshape(B, T, H, K).astype(v.dtype)
