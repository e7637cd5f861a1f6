"""Where trained weights come from, with the model and the tokenizer they belong to."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath

from gptjax import checkpoint, folder, lookup, tree
from gptjax import step as steps
from gptjax.models import lora
from gptjax.tokenizers import store, template
from gptjax.words import (
  Mistake,
  Model,
  Optimizer,
  Params,
  Template,
  Tokenizer,
  TrainState,
)

Say = Callable[[str], None]


class Origin(NamedTuple):
  """A trained model: what a run starts from, or what is opened to be used."""

  name: str  # As it was asked for.
  model: dict[str, Any]  # The c.model that makes it.
  tokenizer: Tokenizer
  length: int  # Tokens of context.
  weights: Callable[[], tuple[int, Params]]  # (step, whole tree), on the mesh in force.
  template: Template | None = None  # How it writes conversations, if it can.


def find_origin(
  name: str, step: str | int = '', say: Say = lambda line: None
) -> Origin:
  """What is trained under a name: a run folder.

  Args:
    name: the folder.
    step: latest, best or a number; '' is best where the run keeps a best, else latest.
    say: takes lines for the user.

  Raises:
    Mistake: nothing of that name. The weights are looked for when they are read.
  """
  place = epath.Path(name)
  config = folder.read_config(place)
  tokenizer = store.load(place / 'tokenizer')

  def weights() -> tuple[int, Params]:
    model = make_model(config['model'], tokenizer)
    return read_weights(place, config, model, step, say)

  return Origin(
    name,
    config['model'],
    tokenizer,
    config['mixture']['length'],
    weights,
    template.load(place / 'tokenizer', tokenizer),
  )


def make_model(settings: Mapping[str, Any], tokenizer: Tokenizer) -> Model:
  """The model of `c.model` over the tokenizer's vocabulary."""
  return lookup.make('models', settings, 'c.model', vocab=tokenizer.size)


def make_optimizer(config: Mapping[str, Any], model: Model) -> Optimizer:
  """The optimizer of `c.optim` for `c.steps` steps."""
  return lookup.make(
    'optim',
    config['optim'],
    'c.optim',
    steps=config['steps'],
    axes=model.axes,
    assemble=lora.overlay,
  )


def read_weights(
  path: epath.Path, config: Mapping[str, Any], model: Model, which: str | int, say: Say
) -> tuple[int, Params]:
  """(step, the whole tree of weights) of a run, on the mesh in force.

  Raises:
    Mistake: it has no such step, or none that is whole.
  """
  optimizer = make_optimizer(config, model)
  state = steps.abstract_state(model, optimizer)
  wanted = {'params': state.params, 'opt_state': state.opt_state}
  if which not in ('', 'latest', 'best'):
    if not str(which).isdecimal():
      raise Mistake(f'--step={which}: allowed are latest, best and a number.')
    which = int(which)
  found, parts = checkpoint.restore_weights(
    path / 'checkpoints', wanted, which or 'best', say
  )
  return found, optimizer.weights(parts['opt_state'], parts['params'], {})


def init_weights(origin: Origin, abstract: TrainState, say: Say) -> Params:
  """The weights of `c.init`, laid out as this run's params.

  Raises:
    Mistake: they are not of this run's shapes; the line names leaves of both.
  """
  number, weights = origin.weights()
  say(f'Weights of step {number} of {origin.name}.')
  mine, others = tree.paths(abstract.params), tree.paths(weights)
  differ = [
    f'{name} is {_shape(others.get(name))} there and {_shape(mine.get(name))} here'
    for name in {**others, **mine}
    if _shape(others.get(name)) != _shape(mine.get(name))
  ]
  if differ:
    more = f' and {len(differ) - 4} more' if len(differ) > 4 else ''
    raise Mistake(f'c.init={origin.name}: {"; ".join(differ[:4])}{more}.')
  return jax.tree.map(
    lambda x, a: jax.device_put(x, a.sharding), weights, abstract.params
  )


def _shape(leaf: Any) -> str:
  return 'missing' if leaf is None else f'{leaf.dtype}{list(leaf.shape)}'
