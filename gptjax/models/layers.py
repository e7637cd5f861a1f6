"""All layers: stacked by group, scanned over repeats, or unrolled over the same tree.

Letters: R repeats of a group, B rows, T tokens, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.experimental.xla_metadata import set_xla_metadata

from gptjax import sharding
from gptjax.models import weight
from gptjax.models.layer import Layer, Pass
from gptjax.models.settings import Settings
from gptjax.models.structure import Group, groups
from gptjax.words import Cache, Model, Params, Tree

Stored = tuple[Any, Any] | None  # Keys and values of one layer, or of a group.
_CALLED = {'inlineable': 'false'}  # Of an operation: it stays a call.
Step = Callable[[Array, tuple[Any, ...]], tuple[Array, Any]]

_SAVED = jax.checkpoint_policies
REMAT = {
  'full': _SAVED.nothing_saveable,
  'dots': _SAVED.save_only_these_names('product', 'attention'),
  'save_attention': _SAVED.save_only_these_names('attention'),
}


def init_layers(c: Settings, key: Array) -> tuple[Tree, Tree]:
  """Weights of all layers by group, and the names of their axes.

  Layer n draws with fold_in(key, n), however the layers are grouped.
  """
  x = jnp.zeros((1, 1, c.embed), jnp.float32)
  run = Pass(jnp.zeros((1,), jnp.int32), {}, watch=('attention',))
  params, axes = {}, {}
  for group in groups(c):
    for name, kind in zip(group.names, group.kinds, strict=True):

      def one(number: Array, kind: str = kind) -> Tree:
        made = Layer(c, kind).init(
          jax.random.fold_in(key, number), x, run, number, None
        )
        return made['params']

      numbers = jnp.array(range(*map(int, name.split(':'))))
      params[name], axes[name] = weight.split(jax.vmap(one)(numbers), 'layers')
  return params, axes


def apply_layers(
  c: Settings, params: dict[str, Any], x: Array, run: Pass, cache: Cache | None
) -> tuple[Array, dict[str, Any], dict[str, Any], dict[str, Array]]:
  """x [B, T, D] through all layers -> x, new keys and values, watched values.

  The watched are stacked over layers in order: [layers, ...].
  """
  keys, values, seen = {}, {}, []
  for group in groups(c):
    weights = tuple(params[name] for name in group.names)
    stored: tuple[Stored, ...] = (None,) * len(group.names)
    if cache is not None:
      stored = tuple((cache.keys[n], cache.values[n]) for n in group.names)
    x, stored, watched = _apply_group(c, group, weights, x, run, stored)
    seen.append(watched)
    for name, pair in zip(group.names, stored, strict=True):
      if pair is not None:
        keys[name], values[name] = pair
  watched = {name: jnp.concatenate([s[name] for s in seen]) for name in run.watch}
  return x, keys, values, watched


def _apply_group(
  c: Settings,
  group: Group,
  weights: tuple[Any, ...],
  x: Array,
  run: Pass,
  stored: tuple[Stored, ...],
) -> tuple[Array, tuple[Stored, ...], dict[str, Array]]:
  apart = any(isinstance(p, list) for p in weights)
  apart |= any(s is not None and isinstance(s[0], tuple) for s in stored)
  scanned = c.scanned and not apart and group.repeats > 1
  step = _make_step(c, group.kinds, run, scanned)
  numbers = group.start + len(group.kinds) * jnp.arange(group.repeats)
  if scanned:
    x, (stored, seen) = jax.lax.scan(step, x, (numbers, weights, stored))
    stack = lambda *a: jnp.stack(a, 1).reshape(-1, *a[0].shape[1:])  # noqa: E731
    return x, stored, jax.tree.map(stack, *seen)
  cut_weights = zip(*(cut(p, group.repeats) for p in weights), strict=True)
  cut_stored = [tuple(_cut_stored(s, r) for s in stored) for r in range(group.repeats)]
  outs = []
  for number, p, s in zip(numbers, cut_weights, cut_stored, strict=True):
    x, out = step(x, (number, p, s))
    outs.append(out)
  merged = tuple(
    _merge_stored(old, [new[i] for new, _ in outs]) for i, old in enumerate(stored)
  )
  seen = [s for _, places in outs for s in places]
  return x, merged, jax.tree.map(lambda *a: jnp.stack(a), *seen)


def _make_step(c: Settings, kinds: Sequence[str], run: Pass, scanned: bool) -> Step:
  """One repeat of a group, as jax.lax.scan wants it."""

  def layer(kind: str) -> Callable[..., Any]:
    def apply(p: Any, x: Array, number: Array, stored: Stored) -> Any:
      return weight.apply(Layer(c, kind), p, x, run, number, stored)

    if c.remat == 'none':
      return apply
    again = jax.checkpoint(apply, policy=REMAT[c.remat], prevent_cse=not scanned)
    return again if scanned or run.writes is not None else _on_its_own(again)

  layers = {kind: layer(kind) for kind in kinds}

  def step(x: Array, xs: tuple[Any, ...]) -> tuple[Array, Any]:
    number, weights, stored = xs
    news, seen = [], []
    for i, kind in enumerate(kinds):
      x, new, watched = layers[kind](weights[i], x, number + i, stored[i])
      news.append(new)
      seen.append(watched)
    return x, (tuple(news), tuple(seen))

  return step


def _on_its_own(layer: Callable[..., Any]) -> Callable[..., Any]:
  """The layer as a function that XLA calls, on one CPU device.

  There XLA drops optimization barriers. Written out one after another, what layers make
  again in the backward pass is merged with what they made before, and so kept for all
  of them at once: full sums, scores, activations. It takes no less long to compile.
  """
  if sharding.platform() != 'cpu' or not sharding.is_alone():
    return layer
  called = jax.jit(layer)

  def apply(p: Any, x: Array, number: Array, stored: Stored) -> Any:
    if not isinstance(x, Tracer):
      return layer(p, x, number, stored)
    p, x = jax.tree.map(_called_back, (p, x))
    x, *rest = called(p, x, number, stored)
    return set_xla_metadata(x, **_CALLED), *rest

  return apply


@jax.custom_vjp
def _called_back(x: Array) -> Array:
  """x, whose gradient is made by a call."""
  return x


_called_back.defvjp(
  lambda x: (x, None), lambda _, d_x: (set_xla_metadata(d_x, **_CALLED),)
)


@jax.custom_vjp
def unstack(x: Array) -> tuple[Array, ...]:
  """x [R, ...] cut along its first axis.

  Plain indexing would give every piece a gradient of x's full size, padded with zeros.
  """
  return tuple(x[i] for i in range(x.shape[0]))


unstack.defvjp(lambda x: (unstack(x), None), lambda _, pieces: (jnp.stack(pieces),))


def cut(weights: Any, repeats: int) -> list[Any]:
  """The weights of each repeat of a group; a list is cut already."""
  if isinstance(weights, list):
    return weights

  def one(x: Array) -> tuple[Array, ...]:
    real = jnp.issubdtype(x.dtype, jnp.floating)
    return unstack(x) if real else tuple(x[i] for i in range(repeats))

  leaves, structure = jax.tree.flatten(weights)
  pieces = zip(*map(one, leaves), strict=True)
  return [jax.tree.unflatten(structure, piece) for piece in pieces]


def unrolls(model: Model) -> bool:
  """Whether a model writes its layers out: wherever it keeps their caches apart."""
  caches = jax.eval_shape(lambda: model.new_cache(1, 1, None)).keys
  return any(isinstance(x, tuple) for x in caches.values())


def unstack_layers(params: Params) -> Params:
  """The same weights with each group as a list of its layers, where they are unrolled.

  Cutting stacked weights would copy all of them in every step. Groups that are lists
  already stay as they are.
  """
  layers = {
    name: cut(group, len(range(*map(int, name.split(':')))))
    if isinstance(group, dict)
    else group
    for name, group in params.get('layers', {}).items()
  }
  return {**params, 'layers': layers}


def _cut_stored(stored: Stored, repeat: int) -> Stored:
  return None if stored is None else (stored[0][repeat], stored[1][repeat])


def _merge_stored(old: Stored, new: list[Any]) -> Stored:
  if old is None:
    return None
  keys, values = zip(*new, strict=True)
  if isinstance(old[0], tuple):
    return keys, values
  return jnp.stack(keys), jnp.stack(values)
