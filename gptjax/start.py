"""How a run starts: from its config to its parts, and to its first state."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from gptjax import checkpoint, files, folder, lookup, origin, run, samples, tree
from gptjax import step as steps
from gptjax.models.layers import unrolls, unstack_layers
from gptjax.optim import schedules
from gptjax.origin import Origin
from gptjax.trained import Trained, abstract_params, make_trained
from gptjax.words import (
  Evaluator,
  Frozen,
  Mistake,
  Model,
  Optimizer,
  Params,
  Source,
  TrainState,
)

Say = Callable[[str], None]


class Parts(NamedTuple):
  """What a run is made of."""

  model: Model
  trained: Trained
  optimizer: Optimizer
  source: Source
  evals: dict[str, Evaluator]
  sample: samples.Sampler | None
  train_step: Callable[..., Any]  # Jitted: the state given is used up.
  abstract: TrainState  # Shapes of the state, with their shardings.


def assemble(
  c: dict[str, Any], path: epath.Path, given: Origin | None, data: str, say: Say
) -> Parts:
  """From the config to the parts."""
  _check_counts(c)
  steps.check_batch(c['batch_size'], c['microbatches'], c['mixture']['length'])
  mixture, judged = run.make_mixture(c, data), run.eval_tasks(c, data)
  tokenizer = run.make_tokenizer(c, mixture, path, given, say)
  model = origin.make_model(c['model'], tokenizer)
  trained = make_trained(c, model)
  optimizer = origin.make_optimizer(c, trained)
  abstract = steps.abstract_state(
    model, optimizer, params=abstract_params(model, trained), axes=trained.axes
  )
  steps.check_state(abstract)
  counts = functools.partial(run.count_labels, mixture)
  objective = lookup.make('objectives', c['objective'], 'c.objective', counts=counts)
  source = run.make_source(c, mixture, tokenizer, path, say)
  evals = run.make_evaluators(c, model, tokenizer, judged, path, say)
  sample = samples.make_sampler(c, model, tokenizer, path)
  train_step = steps.make_train_step(
    model,
    objective,
    optimizer,
    microbatches=c['microbatches'],
    assemble=trained.assemble,
    axes=trained.axes,
  )
  jitted = jax.jit(train_step, donate_argnums=0)
  return Parts(model, trained, optimizer, source, evals, sample, jitted, abstract)


def _check_counts(c: Mapping[str, Any]) -> None:
  """Raises Mistake for a number of steps that is below 0; 0 is never."""
  if c['steps'] >= 2**31:
    raise Mistake(f'c.steps={c["steps"]}: below 2**31.')
  samples = {'samples.every': c['samples']['every']}
  evals = {f'evals.{k}.every': e.get('every', 0) for k, e in c['evals'].items()}
  profile = {f'profile.{k}': v for k, v in c['profile'].items()}
  rest = {k: c[k] for k in ('save_every', 'log_every', 'max_bad_steps')}
  for key, value in {**rest, **evals, **samples, **profile}.items():
    if value < 0:
      raise Mistake(f'c.{key}={value}: a number of steps, or 0 for never.')
  if c['early_stop']['metric'] and c['early_stop']['patience'] < 1:
    raise Mistake('c.early_stop.patience: at least 1 evaluation.')
  if not 0 <= c['seed'] < 2**32:
    raise Mistake(f'c.seed={c["seed"]}: at least 0 and below 2**32.')


class Begun(NamedTuple):
  """Where the loop begins."""

  state: TrainState
  frozen: Frozen
  offsets: dict[str, int]  # Bytes of the logs that count.


def begin(
  c: dict[str, Any],
  parts: Parts,
  saves: checkpoint.Checkpoints,
  place: folder.Folder,
  given: Origin | None,
  say: Say,
) -> Begun:
  """The first state: this run's latest, c.resume's, with c.init's weights, or new."""
  source, found = place.path, saves.restore(parts.abstract)
  if found:
    say(f'Going on from step {found.step} of {source}.')
    _say_changes(place.changed, c, parts, found.step, say)
  elif c['resume']:
    source = epath.Path(c['resume'])
    other = checkpoint.open_checkpoints(source / 'checkpoints', read_only=True, say=say)
    found = other.restore(parts.abstract)
    other.close()
    if found is None:
      raise Mistake(f'c.resume={source}: there is no checkpoint that is whole.')
    say(f'Going on from step {found.step} of {source}.')
    found = found._replace(offsets={})
  if found:
    parts.source.set_state(found.data)
    frozen = laid_out(
      origin.read_frozen(source, parts.model, parts.trained), parts.model
    )
    if frozen and source != place.path:
      files.copy(source / origin.FROZEN, place.path / origin.FROZEN)
    return Begun(found.state, frozen, found.offsets)
  key, params, frozen = jax.random.key(c['seed']), None, {}
  if given:
    known = None if place.new else origin.find_base(place.path)
    params, frozen = _from_origin(key, parts, given, known, place.path, say)
  state = steps.init_state(
    key, parts.model, parts.optimizer, params=params, axes=parts.trained.axes
  )
  return Begun(state, frozen, {})


def _from_origin(
  key: jax.Array,
  parts: Parts,
  given: Origin,
  known: origin.Base | None,
  path: epath.Path,
  say: Say,
) -> tuple[Params, Frozen]:
  """What is trained of the weights of `given`, and what is not.

  `known` is what the run stands on since a start that made no checkpoint.
  """
  trained, given = parts.trained, known.origin if known else given
  fitted = origin.fit(given, parts.model)
  say(f'Weights of step {fitted.step} of {given.name}.')
  names = origin.layout(parts.model)
  anew = [path for path in names if path not in fitted.leaves]
  if anew:
    say(f'Drawn anew, as {given.name} has none of that shape: {", ".join(anew)}.')
  if fitted.unused:
    say(f'Of {given.name} not used: {", ".join(fitted.unused)}.')
  if fixed := [path for path in anew if path in trained.frozen]:
    raise Mistake(
      f'{fixed[0]} is drawn anew and would not be trained: '
      'name it in c.lora.also, or take it out of c.freeze.'
    )
  base = trained.base(tree.nested(fitted.leaves))
  if known:
    origin.check_base(path, known, base)
  elif base:
    origin.write_frozen(path, given, fitted.step, base)

  def make(key: jax.Array, leaves: dict[str, Any]) -> Params:
    drawn = tree.paths(parts.model.init(key))
    return trained.params(tree.nested({**drawn, **leaves}), key)

  where = jax.tree.map(lambda x: x.sharding, parts.abstract.params)
  first, _ = jax.random.split(key)
  params = jax.jit(make, out_shardings=where)(first, fitted.leaves)
  return params, laid_out({'base': base} if base else {}, parts.model)


def laid_out(frozen: Frozen, model: Model) -> Frozen:
  """The frozen trees as a step reads them: layer by layer where it is written out."""
  if not frozen or not unrolls(model):
    return frozen
  return {name: jax.jit(unstack_layers)(whole) for name, whole in frozen.items()}


def _say_changes(
  changed: Mapping[str, tuple[Any, Any]],
  c: dict[str, Any],
  parts: Parts,
  step: int,
  say: Say,
) -> None:
  """What differs from the config that the run was begun with."""
  for key, (old, new) in changed.items():
    say(f'c.{key} changes from {old} to {new}.')
  if 'steps' in changed:
    old, new = changed['steps']
    before = origin.make_optimizer({**c, 'steps': old}, parts.trained)
    first = schedules.first_difference(before.rate, parts.optimizer.rate, new)
    if first is not None:
      say(f'The learning rate differs from step {max(first, step)} on.')
