"""Where trained weights come from, with the model and the tokenizer they belong to."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from gptjax import checkpoint, files, folder, lookup, tree
from gptjax import step as steps
from gptjax.interop import published, smollm2
from gptjax.interop.published import Published
from gptjax.models import lora
from gptjax.tokenizers import jinja, store, template
from gptjax.trained import Trained, abstract_params, layout, make_trained
from gptjax.words import (
  Frozen,
  Mistake,
  Model,
  Optimizer,
  Params,
  Template,
  Tokenizer,
)

Say = Callable[[str], None]

FROZEN = 'frozen.json'  # In a run folder: what its weights stand on.


class Origin(NamedTuple):
  """A trained model: what a run starts from, or what is opened to be used."""

  name: str  # As it was asked for.
  model: dict[str, Any]  # The c.model that makes it.
  tokenizer: Tokenizer
  length: int  # Tokens of context.
  weights: Callable[[], tuple[int, Params]]  # (step, whole tree), on the mesh in force.
  template: Template | None = None  # How it writes conversations, if it can.
  controls: tuple[str, ...] = ()  # Names of what it was trained to be asked for.
  source: Mapping[str, Any] = {}  # Of published weights, what only other tools ask for.
  adapted: 'Adapted | None' = None  # Of a run that trained adapters.


class Adapted(NamedTuple):
  """The adapters of a run."""

  weights: Callable[[], tuple[int, Params]]  # As of Origin, the adapters as Lora.
  base: Callable[[], str]  # Name of the model that they stand over.
  dropout: float
  also: tuple[str, ...]  # Patterns of leaves that were trained whole beside them.


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
  if _is_published(name):
    return _from_published(name, _read_published(name, say))
  place = epath.Path(name)
  try:
    config = folder.read_config(place)
  except Mistake as mistake:
    raise Mistake(f'{mistake}{_hint(place)}') from None
  tokenizer = store.load(place / 'tokenizer')

  def whole() -> tuple[int, Params]:
    model = make_model(config['model'], tokenizer)
    return read_weights(place, config, model, step, say)

  def weights() -> tuple[int, Params]:
    number, found = whole()
    return number, lora.merge(found)

  def base() -> str:
    found = find_base(place)
    return found.origin.name if found else ''

  c, adapted = config.get('lora', {}), None
  if c.get('rank'):
    adapted = Adapted(whole, base, c['dropout'], tuple(c['also']))
  return Origin(
    name,
    config['model'],
    tokenizer,
    config['mixture']['length'],
    weights,
    template.load(place / 'tokenizer', tokenizer),
    _controls(config),
    config.get('source', {}),
    adapted,
  )


def _controls(config: Mapping[str, Any]) -> tuple[str, ...]:
  """The names of what the data of a run's tasks were controlled by."""
  tasks = config['mixture'].get('tasks', {}).values()
  return tuple(
    dict.fromkeys(name for task in tasks for name in task.get('control') or ())
  )


def _is_published(name: str) -> bool:
  """Whether a name is that of others' weights, and not of a run folder."""
  return name == 'smollm2' or name.startswith(('hf:', 'gguf:'))


def _read_published(name: str, say: Say) -> Published:
  kind, _, place = name.partition(':')
  if kind == 'hf':
    return published.read_folder(published.fetch(place))
  if kind == 'gguf':
    return published.read_gguf(epath.Path(place).expanduser())
  return published.read_gguf(smollm2.find(say))


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
    return 0, found.load(tree.nested(layout(make_model(model, tokenizer))))

  source = {
    'name': name,
    'family': found.kind,
    'dtype': found.dtype,
    'special': found.special,
    'generation': found.generation,
    'license': found.license,
  }
  text = found.template
  named = found.special or None
  form = jinja.make(text, tokenizer, named) if text else template.own(tokenizer)
  return Origin(name, model, tokenizer, c.length, weights, form, source=source)


def make_model(settings: Mapping[str, Any], tokenizer: Tokenizer) -> Model:
  """The model of `c.model` over the tokenizer's vocabulary."""
  vocab = min(tokenizer.size, settings.get('rows') or tokenizer.size)
  return lookup.make('models', settings, 'c.model', vocab=vocab)


def make_optimizer(config: Mapping[str, Any], trained: Trained) -> Optimizer:
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
    axes=trained.axes,
    assemble=trained.assemble,
  )


def read_weights(
  path: epath.Path, config: Mapping[str, Any], model: Model, which: str | int, say: Say
) -> tuple[int, Params]:
  """(step, the whole tree of weights) of a run, adapters as Lora, on the mesh in force.

  Raises:
    Mistake: it has no such step, or none that is whole, or its base is not as it was.
  """
  trained = make_trained(config, model)
  optimizer = make_optimizer(config, trained)
  state = steps.abstract_state(
    model, optimizer, params=abstract_params(model, trained), axes=trained.axes
  )
  wanted = {'params': state.params, 'opt_state': state.opt_state}
  if which not in ('', 'latest', 'best'):
    if not str(which).isdecimal():
      raise Mistake(f'--step={which}: allowed are latest, best and a number.')
    which = int(which)
  found, parts = checkpoint.restore_weights(
    path / 'checkpoints', wanted, which or 'best', say
  )
  frozen = read_frozen(path, model, trained)
  return found, optimizer.weights(parts['opt_state'], parts['params'], frozen)


class Fitted(NamedTuple):
  """An origin's weights as leaves of this run's model."""

  step: int
  leaves: dict[str, Any]  # By path; heads that the origin lacks are not there.
  unused: list[str]  # Paths of the origin's heads that the model does not have.


def fit(origin: Origin, model: Model) -> Fitted:
  """Reads an origin's weights as a model's parameters: their layout and dtypes.

  A head that the origin lacks, or has in another shape, is left out.

  Raises:
    Mistake: leaves other than heads differ; the line names them, with both shapes.
  """
  wanted = layout(model)
  step, weights = origin.weights()
  theirs = tree.paths(weights)
  del weights  # Each leaf goes when its successor is there.
  differ = [
    f'{path} is {_shape(theirs.get(path))} there and {_shape(wanted.get(path))} here'
    for path in {**theirs, **wanted}
    if _shape(theirs.get(path)) != _shape(wanted.get(path)) and not _is_head(path)
  ]
  if differ:
    more = f' and {len(differ) - 4} more' if len(differ) > 4 else ''
    raise Mistake(f'{origin.name}: {"; ".join(differ[:4])}{more}.')
  leaves = {}
  for path, leaf in wanted.items():
    found = theirs.pop(path, None)
    if _shape(found) == _shape(leaf):
      leaves[path] = jax.device_put(found.astype(leaf.dtype), leaf.sharding)
  return Fitted(step, leaves, [path for path in theirs if path not in wanted])


def _is_head(path: str) -> bool:
  return path.startswith('heads/')


def _shape(leaf: Any) -> str:
  return 'missing' if leaf is None else str(list(leaf.shape))


# The base of a run whose weights are not all its own.


def write_frozen(path: epath.Path, origin: Origin, step: int, base: Params) -> None:
  """Notes in a run folder where its frozen leaves come from, and their digest."""
  digest = tree.digest(base)
  if jax.process_index() == 0:
    found = {'base': {'name': _lasting(origin.name), 'step': step, 'digest': digest}}
    files.write(path / FROZEN, json.dumps(found, indent=2) + '\n')


def _lasting(name: str) -> str:
  """A name that holds in any working directory."""
  kind, colon, place = name.partition(':')
  if not _is_published(name):
    kind, colon, place = '', '', name
  if (
    name != 'smollm2'
    and files.is_local(place)
    and epath.Path(place).expanduser().exists()
  ):
    place = str(files.absolute(epath.Path(place).expanduser()))
  return f'{kind}{colon}{place}'


class Base(NamedTuple):
  """What FROZEN says of a run."""

  origin: Origin
  digest: str  # sha256 (hex) of the frozen leaves.


def find_base(path: epath.Path) -> Base | None:
  """Where the frozen leaves of a run come from; None: it notes nothing.

  A run folder that is not where it was is looked for beside the run.

  Raises:
    Mistake: the note is damaged, or the base is nowhere.
  """
  file = path / FROZEN
  if not file.exists():
    return None
  try:
    found = json.loads(file.read_text())['base']
    name, step, digest = found['name'], found['step'], found['digest']
  except (ValueError, KeyError, TypeError):
    raise Mistake(f'{file} is damaged: what the run stands on is not known.') from None
  beside = path.parent / epath.Path(name).name
  moved = not _is_published(name) and not epath.Path(name).exists()
  if moved and (beside / 'config.json').exists():
    name = str(beside)
  try:
    return Base(find_origin(name, step), digest)
  except Mistake as mistake:
    raise Mistake(f'{path} stands on {name}: {mistake}') from None


def read_frozen(path: epath.Path, model: Model, trained: Trained) -> Frozen:
  """The trees of a run that are not trained, laid out like parameters.

  Raises:
    Mistake: the base is not there, or is not what the run was begun with.
  """
  if not trained.frozen:
    return {}
  known = find_base(path)
  if known is None:
    raise Mistake(f'{path} has no {FROZEN}: what its weights stand on is not known.')
  base = trained.base(tree.nested(fit(known.origin, model).leaves))
  check_base(path, known, base)
  return {'base': base}


def check_base(path: epath.Path, known: Base, base: Params) -> None:
  """Raises Mistake unless a base is the one that a run was begun with."""
  if (found := tree.digest(base)) != known.digest:
    raise Mistake(
      f'{known.origin.name} is not what {path} stands on: the frozen leaves had sha256 '
      f'{known.digest} and have {found}; put the old ones back.'
    )
