"""What of a model a run trains, and how the whole is put together from it.

Without `c.lora` and `c.freeze` that is all of it. Otherwise the leaves that stay as
they are lie in frozen['base'], laid out like parameters, and only what is trained is in
the optimizer and in the checkpoint:

  c.freeze   patterns of leaves that stay as they are; the others are trained
  c.lora     adapters of the products that `targets` select are trained, with them new
             heads and the leaves that `also` selects; all else stays as it is
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from gptjax import sharding, tree
from gptjax.lookup import nearest
from gptjax.models import lora
from gptjax.words import Mistake, Model, Params, Tree

# Of c.lora, for the configs that do not have it.
OFF: Mapping[str, Any] = dict(rank=0, alpha=16.0, dropout=0.0, targets=(), also=())
# Trained beside adapters: the heads that a language model comes without.
NEW_HEADS = ('heads/classes', 'heads/values')


class Trained(NamedTuple):
  """What is trained, and what stays as it is."""

  axes: Tree  # Logical axes of the params that are trained.
  frozen: frozenset[str]  # Paths of the leaves that are not: those of the base.
  assemble: Callable[..., Params]  # (base, params, key, rows) -> the whole tree.
  draw: Callable[[jax.Array, Params], Params]  # (key, whole) -> new adapters.

  def params(self, whole: Params, key: jax.Array) -> Params:
    """What is trained: leaves of a whole tree, and adapters drawn for others."""
    own = {p: x for p, x in tree.paths(whole).items() if p not in self.frozen}
    return lora.overlay(tree.nested(own), self.draw(key, whole))

  def base(self, whole: Params) -> Params:
    """The leaves of a whole tree that are not trained."""
    own = {p: x for p, x in tree.paths(whole).items() if p in self.frozen}
    return tree.nested(own)


def make_trained(config: Mapping[str, Any], model: Model) -> Trained:
  """What `c.lora` and `c.freeze` leave to be trained of a model.

  Raises:
    Mistake: a number out of range, a pattern that matches nothing or only some layers
      of a stacked leaf, or nothing is left to be trained.
  """
  c, freeze = {**OFF, **config.get('lora', {})}, config.get('freeze', ())
  _check(c, freeze, config)
  names = tree.paths(model.axes, is_leaf=_is_names)
  if not c['rank']:
    frozen = _matching(names, freeze, 'c.freeze')
    if len(frozen) == len(names):
      raise Mistake('c.freeze: every leaf matches; nothing is left to be trained.')
    axes = tree.nested({p: n for p, n in names.items() if p not in frozen})
    return Trained(axes, frozen, lora.assemble, lambda key, whole: {})
  also = _matching(names, c['also'], 'c.lora.also')
  also |= {path for path in names if path.startswith(NEW_HEADS)}
  targets = lora.chosen(model.axes, c['targets'])
  if both := sorted(also & set(targets)):
    raise Mistake(f'c.lora.also: {both[0]} has an adapter; it is one or the other.')
  whole = tree.nested({path: names[path] for path in also})
  return Trained(
    lora.overlay(whole, lora.adapter_axes(model.axes, targets)),
    frozenset(names) - also,
    functools.partial(
      lora.assemble, scale=c['alpha'] / c['rank'], dropout=c['dropout']
    ),
    lambda key, whole: lora.adapters(key, whole, targets, c['rank']),
  )


def _check(c: Mapping[str, Any], freeze: Sequence[str], config: Any) -> None:
  """Raises Mistake for what needs no look at the model."""
  for key in c:
    if key not in OFF:
      raise Mistake(f'c.lora takes no {key!r}: {nearest(key, OFF)}')
  lists = {'c.freeze': freeze, 'c.lora.targets': c['targets'], 'c.lora.also': c['also']}
  for key, patterns in lists.items():
    if isinstance(patterns, str):
      raise Mistake(f'{key}={patterns!r}: a tuple of patterns, ({patterns!r},).')
  if c['rank'] < 0:
    raise Mistake(f'c.lora.rank={c["rank"]}: at least 1, or 0 for no adapters.')
  if not 0 <= c['dropout'] < 1:
    raise Mistake(f'c.lora.dropout={c["dropout"]}: at least 0 and below 1.')
  if c['rank'] and freeze:
    raise Mistake('c.freeze: under c.lora all leaves but its own stay as they are.')
  if (c['rank'] or freeze) and not config['init'] and not config['resume']:
    key = 'c.lora' if c['rank'] else 'c.freeze'
    raise Mistake(f'{key} leaves weights as they are, and c.init does not say whose.')


def _matching(
  names: Mapping[str, Any], patterns: Sequence[str], where: str
) -> frozenset[str]:
  """Paths that patterns match, each of which must match one."""
  leaves = {path: jax.ShapeDtypeStruct((), int) for path in names}
  found = tree.select(leaves, patterns, where)
  return frozenset(path for path, hit in found.items() if hit)


def _is_names(node: Any) -> bool:
  return isinstance(node, tuple)


def layout(model: Model) -> dict[str, Any]:
  """Abstract leaves of the whole tree by path, with their shardings on the mesh."""
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return tree.paths(
    jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      shapes,
      sharding.layout(shapes, model.axes),
    )
  )


def abstract_params(model: Model, trained: Trained) -> Params:
  """Shapes of what is trained."""
  key = jax.random.key(0)
  return jax.eval_shape(lambda: trained.params(model.init(key), key))
