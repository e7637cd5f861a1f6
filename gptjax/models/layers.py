"""All layers: stacked by group, scanned over repeats, or unrolled over the same tree.

Letters: R repeats of a group, B rows, T tokens, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gptjax.models import weight
from gptjax.models.layer import Layer, Pass
from gptjax.models.settings import Settings
from gptjax.models.structure import Group, groups
from gptjax.words import Cache, Params, Tree

Stored = tuple[Any, Any] | None  # Keys and values of one layer, or of a group.
Step = Callable[[Array, tuple[Any, ...]], tuple[Array, Any]]

_SAVED = jax.checkpoint_policies
REMAT = {
  'full': _SAVED.nothing_saveable,
  'dots': _SAVED.dots_with_no_batch_dims_saveable,
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
    return jax.checkpoint(apply, policy=REMAT[c.remat], prevent_cse=not scanned)

  def step(x: Array, xs: tuple[Any, ...]) -> tuple[Array, Any]:
    number, weights, stored = xs
    news, seen = [], []
    for i, kind in enumerate(kinds):
      x, new, watched = layer(kind)(weights[i], x, number + i, stored[i])
      news.append(new)
      seen.append(watched)
    return x, (tuple(news), tuple(seen))

  return step


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


def unstack_layers(params: Params) -> Params:
  """The same weights with each group as a list of its layers, for decoding on a CPU.

  A step that reads every weight once is bound by memory, and cutting stacked weights
  would copy all of them. Groups that are lists already stay as they are.
  """
  layers = {
    name: cut(group, len(range(*map(int, name.split(':')))))
    if isinstance(group, dict)
    else group
    for name, group in params['layers'].items()
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
