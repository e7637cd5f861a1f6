"""Muon: momentum, orthogonalized, for hidden matrices; AdamW for all else.

Letters: G momentum as a matrix [I, O] (inputs, outputs), stacked over layers [R, I, O].

  M <- b M + (1 - b) g,   G = b M + (1 - b) g (Nesterov) or M
  p <- p - lr (s NewtonSchulz(G) + weight_decay p)

`scale='rms'` has s = 0.2 sqrt(max(I, O)), so that entries change as much as AdamW's and
one `lr` serves both (Liu et al. 2025, Muon is scalable, eq. 4); `scale='width'` has
s = sqrt(max(1, O / I)), with `lr` about 0.02 (Jordan et al. 2024, Muon, kellerjordan
.github.io/posts/muon, whose rows / cols is this: PyTorch stores weights as [O, I]).

Hidden matrices are known by the logical names of their axes: embeddings, heads, norms,
biases and adapters are none. [D, H, K] is D x (H K), and [H, K, D] is (H K) x D.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gptjax import tree
from gptjax.lookup import nearest
from gptjax.optim._chain import (
  STACKED,
  Assemble,
  Rule,
  axes_by_path,
  chain,
  check_decays,
  sides,
)
from gptjax.optim.adamw import adam_rule
from gptjax.optim.schedules import make_schedule
from gptjax.words import Array, Mistake, Optimizer, Params, Tree

HIDDEN = ('embed', 'mlp', 'heads', 'kv_heads', 'head')  # Axes of hidden matrices.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Of x, x^3 and x^5: steepest at 0.


class MuonState(NamedTuple):
  """Momentum of the hidden matrices, and AdamW's state of the other leaves."""

  momentum: Params
  adam: optax.ScaleByAdamState


def muon(
  *,
  lr: float,
  steps: int,
  axes: Tree,
  momentum: float = 0.95,
  nesterov: bool = True,
  iterations: int = 5,
  scale: str = 'rms',
  adam_lr: float | None = None,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  warmup: float = 0,
  decay: str = 'cosine',
  final: float = 0.0,
  cooldown: float = 0.2,
  weight_decay: float = 0.1,
  decays: Mapping[str, float] | None = None,
  rates: Mapping[str, float] | None = None,
  clip: float = 1.0,
  ema: float = 0.0,
  assemble: Assemble | None = None,
) -> Optimizer:
  """Muon. What it shares with others: `schedules.make_schedule`, `_chain.chain`.

  Args:
    lr: of the hidden matrices; its schedule is everyone's.
    steps: of the run.
    axes: logical axes of params: they say which leaves are hidden matrices.
    momentum: b.
    nesterov: orthogonalizes the momentum as it will be, not as it is.
    iterations: of Newton-Schulz.
    scale: 'rms' or 'width'.
    adam_lr: of the other leaves; None: `lr`.
    b1: of AdamW for the other leaves, as b2 and eps.

  Raises:
    Mistake: as the chain, or an unknown scale, or no leaf is a hidden matrix.
  """
  if scale not in ('rms', 'width'):
    raise Mistake(f'c.optim.scale={scale!r}: {nearest(scale, ("rms", "width"))}')
  check_decays(momentum=momentum)
  hidden = hidden_matrices(axes)
  if not hidden:
    found = ', '.join(list(axes_by_path(axes))[:8])
    raise Mistake(f'c.optim: muon finds no hidden matrix among {found}; take adamw.')
  rule = _rule(hidden, momentum, nesterov, iterations, scale, adam_rule(b1, b2, eps))
  ratio = 1.0 if adam_lr is None or not lr else adam_lr / lr
  return chain(
    rule._replace(rate=lambda path: 1.0 if path in hidden else ratio),
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


def hidden_matrices(axes: Tree) -> dict[str, tuple[int, int]]:
  """Paths of the leaves that are orthogonalized: where inputs begin, where outputs."""
  found = {}
  for path, names in axes_by_path(axes).items():
    split = sides(names)
    if split and all(n in HIDDEN or n in STACKED for n in names):
      found[path] = (split[0][0], split[1][0])
  return found


def orthogonalize(matrices: Array, iterations: int = 5) -> Array:
  """Singular values brought near 1 (0.7 to 1.2) by Newton-Schulz; [R, I, O].

  In float32 on CPU, in bfloat16 elsewhere.
  """
  x = matrices.astype(jnp.float32)
  x = x / (jnp.sqrt(jnp.sum(x * x, axis=(-2, -1), keepdims=True)) + 1e-7)
  tall = x.shape[-2] > x.shape[-1]
  if tall:  # The smaller Gram matrix costs less.
    x = jnp.swapaxes(x, -2, -1)
  full = _newton_schulz if x.shape[-1] < 2 * x.shape[-2] else _newton_schulz_long
  x = jax.lax.platform_dependent(
    x,
    cpu=lambda x: full(x, iterations),
    default=lambda x: _newton_schulz(x.astype(jnp.bfloat16), iterations).astype(
      x.dtype
    ),
  )
  return jnp.swapaxes(x, -2, -1) if tall else x


def _newton_schulz(x: Array, iterations: int) -> Array:
  a, b, c = COEFFICIENTS
  for _ in range(iterations):
    gram = jnp.einsum('RIO,RJO->RIJ', x, x)
    poly = b * gram + c * _product(gram, gram)
    x = a * x + _product(poly, x)
  return x


def _newton_schulz_long(x: Array, iterations: int) -> Array:
  """The same with all iterations on the Gram matrix, whose polynomials commute.

  Costs 60 % for O = 4 I; in bfloat16 the errors of the Gram matrix would grow too far.
  """
  a, b, c = COEFFICIENTS
  gram = jnp.einsum('RIO,RJO->RIJ', x, x)
  total = one = jnp.eye(x.shape[-2], dtype=x.dtype)[None]
  for i in range(iterations):
    poly = a * one + b * gram + c * _product(gram, gram)
    total = _product(poly, total) if i else poly
    if i + 1 < iterations:
      gram = _product(_product(poly, gram), poly)
  return _product(total, x)


def _product(x: Array, y: Array) -> Array:
  return jnp.einsum('RIJ,RJO->RIO', x, y)


def _rule(
  hidden: Mapping[str, tuple[int, int]],
  b: float,
  nesterov: bool,
  iterations: int,
  scale: str,
  adam: Rule,
) -> Rule:
  def direction(path: str, m: Array, g: Array) -> Array:
    first, second = hidden[path]
    I, O = math.prod(m.shape[first:second]), math.prod(m.shape[second:])  # noqa: E741
    s = 0.2 * math.sqrt(max(I, O)) if scale == 'rms' else math.sqrt(max(1, O / I))
    u = b * m + (1 - b) * g if nesterov else m
    u = orthogonalize(u.reshape(-1, I, O), iterations)
    return (s * u).astype(g.dtype).reshape(m.shape)

  def init(params: Params) -> MuonState:
    mine, rest = _split(params, hidden)
    return MuonState(jax.tree.map(jnp.zeros_like, mine), adam.init(rest))

  def update(
    grads: Params, state: MuonState, params: Params
  ) -> tuple[Params, MuonState]:
    g, rest = _split(grads, hidden)
    momentum = jax.tree.map(lambda m, x: b * m + (1 - b) * x, state.momentum, g)
    mine = tree.map_paths(direction, momentum, g)
    rest, adam_state = adam.update(rest, state.adam, params)
    found = tree.paths(mine) | tree.paths(rest)
    leaves = [found[path] for path in tree.paths(grads)]
    directions = jax.tree.unflatten(jax.tree.structure(grads), leaves)
    return directions, MuonState(momentum, adam_state)

  def axes(param_axes: Tree) -> MuonState:
    mine, rest = _split(param_axes, hidden)
    return MuonState(mine, adam.axes(rest))

  return Rule(init, update, axes)


def _split(node: Tree, hidden: Mapping[str, Any], prefix: str = '') -> tuple[Any, Any]:
  """Nested dicts with the hidden leaves only, and with all others."""
  mine, rest = {}, {}
  for key, child in node.items():
    path = f'{prefix}{key}'
    if isinstance(child, dict):
      parts = _split(child, hidden, f'{path}/')
      for side, part in zip((mine, rest), parts, strict=True):
        if part:
          side[key] = part
    else:
      (mine if path in hidden else rest)[key] = child
  return mine, rest
