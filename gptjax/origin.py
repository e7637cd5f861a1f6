"""Where trained weights come from, with the model and the tokenizer they belong to."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from gptjax import checkpoint, folder, lookup, sharding, tree
from gptjax import step as steps
from gptjax.interop import published, smollm2
from gptjax.interop.published import Published
from gptjax.models import lora
from gptjax.tokenizers import store
from gptjax.words import Mistake, Model, Optimizer, Params, Tokenizer, TrainState

Say = Callable[[str], None]


class Origin(NamedTuple):
  """A trained model: what a run starts from, or what is opened to be used."""

  name: str  # As it was asked for.
  model: dict[str, Any]  # The c.model that makes it.
  tokenizer: Tokenizer
  length: int  # Tokens of context.
  weights: Callable[[], tuple[int, Params]]  # (step, whole tree), on the mesh in force.
  source: Mapping[str, Any] = {}  # Of published weights, what only other tools ask for.


def find_origin(
  name: str, step: str | int = '', say: Say = lambda line: None
) -> Origin:
  """What is trained under a name: a run folder, hf:X, gguf:FILE or smollm2.

  Args:
    name: the folder of a run; hf: and a folder or a name of the hub; gguf: and a file.
    step: latest, best or a number; '' is best where the run keeps a best, else latest.
    say: takes lines for the user.

  Raises:
    Mistake: nothing of that name. The weights are looked for when they are read.
  """
  if found := _find_published(name, say):
    return _from_published(name, found)
  place = epath.Path(name)
  try:
    config = folder.read_config(place)
  except Mistake as mistake:
    raise Mistake(f'{mistake}{_hint(place)}') from None
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
    config.get('source', {}),
  )


def _find_published(name: str, say: Say) -> Published | None:
  """A model of others; None: the name is that of a run folder."""
  kind, _, place = name.partition(':')
  if kind == 'hf':
    return published.read_folder(published.fetch(place))
  if kind == 'gguf':
    return published.read_gguf(epath.Path(place).expanduser())
  if name == 'smollm2':
    return published.read_gguf(smollm2.find(say))
  return None


def _hint(place: epath.Path) -> str:
  """What may have been meant by a name that is no run folder's."""
  file = place / 'config.json'
  if file.exists() and b'"model_type"' in file.read_bytes():
    return f' It may be published weights: hf:{place}.'
  return f' A GGUF file is gguf:{place}.' if place.suffix == '.gguf' else ''


def _from_published(name: str, found: Published) -> Origin:
  c, tokenizer = found.settings, found.tokenizer
  rows = c.vocab if c.vocab != tokenizer.size else 0
  plain = {'vocab': c.vocab, 'rows': rows}
  said = dataclasses.asdict(dataclasses.replace(c, **plain))
  usual = {f.name: f.default for f in dataclasses.fields(c)}
  model = {k: v for k, v in said.items() if k != 'vocab' and v != usual[k]}
  model = {'name': 'transformer', **model}

  def weights() -> tuple[int, Params]:
    made = make_model(model, tokenizer)
    shapes = jax.eval_shape(made.init, jax.random.key(0))
    layout = sharding.layout(shapes, made.axes)
    abstract = jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      shapes,
      layout,
    )
    return 0, found.load(abstract)

  source = {
    'name': name,
    'family': found.kind,
    'dtype': found.dtype,
    'special': found.special,
    'generation': found.generation,
    'template': found.template,
  }
  return Origin(name, model, tokenizer, c.length, weights, source)


def make_model(settings: Mapping[str, Any], tokenizer: Tokenizer) -> Model:
  """The model of `c.model` over the tokenizer's vocabulary."""
  vocab = min(tokenizer.size, settings.get('rows') or tokenizer.size)
  return lookup.make('models', settings, 'c.model', vocab=vocab)


def make_optimizer(config: Mapping[str, Any], model: Model) -> Optimizer:
  """The optimizer of `c.optim` for `c.steps` steps.

  A run that holds published weights was not trained and has none.
  """
  if 'optim' not in config:
    return Optimizer(
      init=lambda params: {},
      update=lambda grads, opt_state, params, step: (params, opt_state),
      weights=lambda opt_state, params, frozen: params,
      rate=lambda step: jnp.zeros(()),
      axes=lambda names: {},
    )
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
