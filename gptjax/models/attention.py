"""Attention: one function, several forms, one oracle.

  plain      attention_plain.py: the oracle; short rows, and queries against a cache
  blockwise  attention_blockwise.py: any length and any mask in linear memory
  cpu        attention_cpu.py: rectangles of the causal triangle
  splash     attention_fused.py: the TPU's kernel
  triton     attention_triton.py: the GPU's kernel

Every form gives the numbers of `plain`, forward and backward.
"""

from typing import Any

import jax

from gptjax import sharding
from gptjax.lookup import nearest
from gptjax.models import (
  attention_blockwise,
  attention_cpu,
  attention_fused,
  attention_plain,
)
from gptjax.words import Mistake

FORMS = ('plain', 'blockwise', 'cpu', 'splash', 'triton')

# Scores [T, S] of a head that may exist at once against a cache.
_SCORES = 1 << 20

# Rows so short that there is nothing to save.
_SHORT = 16


@jax.named_scope('attend')
def attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  positions: jax.Array | None = None,
  slots: jax.Array | None = None,
  segments: tuple[jax.Array, jax.Array] | None = None,
  causal: bool = True,
  window: int | None = None,
  softcap: float | None = None,
  scale: float,
  form: str | None = None,
) -> jax.Array:
  """Mixes values by softmax(scale * q k), over the keys that each query may see.

  A key is seen if it is of the query's segment, not ahead of it (if causal), and less
  than `window` places away. Rows of packed documents need segments only: leave out
  positions and slots, and blocks out of reach are never computed. A query that sees no
  key gives zeros.

  Args:
    q: [B, T, H, K]; H is a multiple of G, and query head h reads key head h // (H / G).
    k: [B, S, G, K].
    v: [B, S, G, K].
    positions: [B, T] places of the queries; None: 0, 1, ... T - 1.
    slots: [B, S] places of the keys; None: 0, 1, ... S - 1.
    segments: of the queries [B, T] and of the keys [B, S].
    causal: False sees both ways.
    window: places; the query's own counts. None: no limit.
    softcap: squeezes scores into (-softcap, softcap) before the mask.
    scale: of the scores.
    form: one of FORMS; None: what is fast where the program will run.

  Returns:
    [B, T, H, K] in the dtype of v; scores and softmax are in float32.

  Raises:
    Mistake: an unknown form.
  """
  aligned = positions is None and slots is None and q.shape[1] == k.shape[1]
  form = form or _choose(q.shape[1], k.shape[1], aligned)
  kinds: dict[str, Any] = dict(
    causal=causal, window=window, softcap=softcap, scale=scale
  )
  places: dict[str, Any] = dict(positions=positions, slots=slots, segments=segments)
  if form == 'plain':
    p = attention_plain.probabilities(q, k, **places, **kinds)
    return attention_plain.mix(p, v)
  if form == 'blockwise':
    return attention_blockwise.blockwise(q, k, v, **places, **kinds)
  if form == 'cpu' and q.shape[1] == 1:
    return attention_cpu.single(q, k, v, **places, **kinds)
  if form not in FORMS:
    raise Mistake(f'attention has no form {form!r}: {nearest(form, FORMS)}')
  if not aligned:
    raise ValueError(f'form {form!r} serves no cache: leave out positions and slots.')
  if form == 'cpu':
    return attention_cpu.triangle(q, k, v, segments=segments, **kinds)
  if form == 'splash':
    return attention_fused.splash(q, k, v, segments=segments, **kinds)
  return attention_fused.triton(q, k, v, segments=segments, **kinds)


def _choose(T: int, S: int, aligned: bool) -> str:
  """The form that is fast on the platform at hand, of those that serve the shapes."""
  platform = sharding.platform()
  if platform == 'cpu' and T == 1:
    return 'cpu'
  if not aligned or T < _SHORT:
    return 'plain' if T * S <= _SCORES else 'blockwise'
  if platform == 'cpu':
    return 'cpu' if T <= attention_cpu.LONGEST else 'blockwise'
  return {'tpu': 'splash', 'gpu': 'triton'}.get(platform, 'blockwise')
