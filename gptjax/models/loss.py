"""Cross-entropy over a large vocabulary, on chunks of tokens.

Logits [B, T, V] never exist whole. Where the loss is differentiated, the gradient of
a chunk is taken while its logits are there: the cotangent of a sum is one number,
known up to that factor, so the product with the head is never made a second time.

Source: z-loss: PaLM, Chowdhery et al. 2022, section 5; label smoothing: Szegedy et al.
2016, section 7. Fusing the gradient into the forward pass: Wijmans et al. 2024
(2411.09009), and Liger kernels, Hsu et al. 2024.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gptjax import sharding

Head = Callable[[jax.Array], jax.Array]  # [..., D] to logits [..., V].


class Loss(NamedTuple):
  """Sums and per-token values of a batch. Only `total` has a gradient."""

  total: jax.Array  # [] nats: the sum of weights * (smoothed nats + z_loss * log_z^2).
  nats: jax.Array  # [B, T] -log p(target), neither smoothed nor weighted.
  correct: jax.Array  # [B, T] bool: the target has the largest logit.


class _Chunk(NamedTuple):
  hidden: jax.Array  # [B, t, D]
  targets: jax.Array  # [B, t]
  weights: jax.Array  # [B, t]


@jax.named_scope('loss')
def cross_entropy(
  head: Head,
  hidden: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
  *,
  z_loss: float = 0.0,
  smoothing: float = 0.0,
  chunk: int = 1024,
) -> Loss:
  """The loss that training minimises.

  Args:
    head: hidden [..., D] to logits [..., V]; logits of padded ids are -inf. Arrays in
      its closure (`functools.partial(model.heads['lm'], params)`) get their gradients;
      leaves that it does not read cost nothing.
    hidden: [B, T, D].
    targets: [B, T] ids.
    weights: [B, T] of the targets; they have no gradient. All may be zero.
    z_loss: factor of log_z^2, log_z being the log of the softmax sum.
    smoothing: share of the target's probability spread over the real vocabulary.
    chunk: tokens that a device works on at a time, at least one of each row.
  """
  kinds = (z_loss, smoothing)
  whole = _Chunk(hidden, targets, weights.astype(jnp.float32))
  pieces = _cut(whole, chunk)
  head, leaves = jax.closure_convert(lambda h: head(h), pieces.hidden[0])
  total, nats, correct = _cross_entropy(head, kinds, pieces, leaves)
  nats, correct = (_join(x, hidden.shape[1]) for x in (nats, correct))
  return Loss(total, jax.lax.stop_gradient(nats), correct)


@jax.named_scope('loss')
def token_nats(
  head: Head, hidden: jax.Array, targets: jax.Array, *, chunk: int = 1024
) -> jax.Array:
  """-log p(target) of each token, [B, T], with a gradient.

  For objectives that are no weighted sum of nats (preferences, policy gradients). The
  backward pass makes the logits of each chunk again.
  """
  pieces = _cut(_Chunk(hidden, targets, jnp.ones(targets.shape)), chunk)

  @jax.checkpoint
  def one(piece: _Chunk) -> jax.Array:
    return _measure(head(piece.hidden), piece.targets).nats

  return _join(jax.lax.map(one, pieces), hidden.shape[1])


def _cut(whole: _Chunk, chunk: int) -> _Chunk:
  """[B, T, ...] to [pieces, B, t, ...], filled up with tokens of weight 0.

  Along T, so that rows stay cut over the mesh as they are.
  """
  B, T = whole.targets.shape
  rows = B // _devices(B)
  pieces = math.ceil(T / max(1, chunk // rows))
  size = math.ceil(T / pieces)  # Of even pieces, for little filling.
  short = pieces * size - T

  def one(x: jax.Array) -> jax.Array:
    x = jnp.pad(x, [(0, 0), (0, short)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(B, pieces, size, *x.shape[2:]), 1, 0)

  return _Chunk(*map(one, whole))


def _devices(rows: int) -> int:
  """Devices that the rows of a batch are cut over."""
  axes = sharding.spec(('batch',), (rows,))
  if not axes or axes[0] is None:
    return 1
  names = axes[0] if isinstance(axes[0], tuple) else (axes[0],)
  sizes = jax.sharding.get_abstract_mesh().shape
  return math.prod(sizes[name] for name in names)


def _join(x: jax.Array, length: int) -> jax.Array:
  """[pieces, B, t] to [B, T]."""
  return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :length]


class _Measures(NamedTuple):
  logits: jax.Array  # [B, t, V] float32.
  log_z: jax.Array  # [B, t]
  hit: jax.Array  # [B, t, V] bool: the target's place.
  nats: jax.Array  # [B, t]


def _measure(logits: jax.Array, targets: jax.Array) -> _Measures:
  logits = logits.astype(jnp.float32)
  log_z = jax.nn.logsumexp(logits, axis=-1)
  # A comparison needs no gather, whose gradient is a scatter, and keeps V cut.
  hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == targets[..., None]
  nats = log_z - jnp.sum(jnp.where(hit, logits, 0), axis=-1)
  return _Measures(logits, log_z, hit, nats)


def _terms(kinds: tuple[float, float], m: _Measures, weights: jax.Array) -> jax.Array:
  """The chunk's share of the total."""
  z_loss, smoothing = kinds
  each = m.nats + z_loss * jnp.square(m.log_z)
  if smoothing:
    real = jnp.isfinite(m.logits)
    mean = jnp.sum(jnp.where(real, m.logits, 0), -1) / jnp.sum(real, -1)
    each += smoothing * (m.log_z - mean - m.nats)
  return jnp.sum(weights * each)


def _slope(kinds: tuple[float, float], m: _Measures, weights: jax.Array) -> jax.Array:
  """The gradient of `_terms` by the logits, [B, t, V]."""
  z_loss, smoothing = kinds
  p = jnp.exp(m.logits - m.log_z[..., None])
  slope = p * (1 + 2 * z_loss * m.log_z)[..., None]
  slope -= jnp.where(m.hit, 1 - smoothing, 0)
  if smoothing:
    real = jnp.isfinite(m.logits)
    slope -= jnp.where(real, smoothing / jnp.sum(real, -1, keepdims=True), 0)
  return weights[..., None] * slope


def _is_correct(m: _Measures) -> jax.Array:
  best = jnp.max(m.logits, axis=-1)
  return best - m.log_z <= -m.nats


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropy(
  head: Callable[..., jax.Array],
  kinds: tuple[float, float],
  pieces: _Chunk,
  leaves: Sequence[jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Total, nats and correct [pieces, B, t]."""

  def one(total: jax.Array, piece: _Chunk) -> Any:
    m = _measure(head(piece.hidden, *leaves), piece.targets)
    return total + _terms(kinds, m, piece.weights), (m.nats, _is_correct(m))

  total, (nats, correct) = _scan(one, jnp.float32(0), pieces)
  return total, nats, correct


def _forward(
  head: Callable[..., jax.Array],
  kinds: tuple[float, float],
  pieces: Any,
  leaves: Any,
) -> tuple[Any, Any]:
  """As above; saved are the gradients for a cotangent of 1."""
  moving = [leaf.perturbed for leaf in leaves]
  leaves = [leaf.value for leaf in leaves]
  pieces = jax.tree.map(lambda x: x.value, pieces, is_leaf=_is_primal)
  free = [leaf for leaf, moves in zip(leaves, moving, strict=True) if moves]

  def logits(hidden: jax.Array, free: Sequence[jax.Array]) -> jax.Array:
    rest = iter(free)
    mixed = [
      next(rest) if moves else leaf for leaf, moves in zip(leaves, moving, strict=True)
    ]
    return head(hidden, *mixed)

  def one(carry: Any, piece: _Chunk) -> Any:
    total, d_free = carry
    out, pull = jax.vjp(logits, piece.hidden, free)
    m = _measure(out, piece.targets)
    slope = _slope(kinds, m, piece.weights).astype(out.dtype)
    d_hidden, more = pull(slope)
    total += _terms(kinds, m, piece.weights)
    carry = total, jax.tree.map(jnp.add, d_free, more)
    return carry, (m.nats, _is_correct(m), d_hidden)

  start = jnp.float32(0), jax.tree.map(jnp.zeros_like, free)
  (total, d_free), (nats, correct, d_hidden) = _scan(one, start, pieces)
  return (total, nats, correct), (d_hidden, d_free, moving)


def _is_primal(x: Any) -> bool:
  return hasattr(x, 'perturbed')


def _scan(one: Callable[..., Any], start: Any, pieces: _Chunk) -> Any:
  """jax.lax.scan, but a single piece needs no loop."""
  if pieces.targets.shape[0] > 1:
    return jax.lax.scan(one, start, pieces)
  carry, out = one(start, jax.tree.map(lambda x: x[0], pieces))
  return carry, jax.tree.map(lambda x: x[None], out)


def _backward(
  head: Callable[..., jax.Array], kinds: Any, saved: Any, cotangents: Any
) -> tuple[Any, Any]:
  del head, kinds
  d_hidden, d_free, moving = saved
  scale = cotangents[0]
  if isinstance(scale, jax.custom_derivatives.SymbolicZero):
    scale = jnp.float32(0)
  d_hidden, d_free = jax.tree.map(
    lambda x: (x * scale).astype(x.dtype), (d_hidden, d_free)
  )
  rest = iter(d_free)
  d_leaves = [next(rest) if moves else None for moves in moving]
  no_gradient: Any = None
  return _Chunk(d_hidden, no_gradient, no_gradient), d_leaves


_cross_entropy.defvjp(_forward, _backward, symbolic_zeros=True)
