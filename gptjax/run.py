"""From a config, or from a run folder, to model, tokenizer, tasks and weights."""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from gptjax import files, lookup, sharding
from gptjax.data import loader
from gptjax.generate import engine, text
from gptjax.origin import Origin, find_origin, make_model
from gptjax.tasks.conversations import turns_of
from gptjax.tokenizers import store, template, turns
from gptjax.words import (
  Conversation,
  Evaluator,
  Example,
  Label,
  Mistake,
  Model,
  Pair,
  Params,
  Task,
  Template,
  Text,
  Tokenizer,
)

Say = Callable[[str], None]
SHARES = (
  'weight',
  'epochs',
)  # What c.mixture.tasks says beside a task's own arguments.
Mixture = Mapping[str, tuple[Task, float | None]]
# What c.mixture says beside its tasks.
SETTINGS = (
  'length', 'packing', 'roles', 'temperature', 'window', 'prefetch', 'workers',
  'changed',
)  # fmt: skip


def make_task(config: Mapping[str, Any], name: str, split: str, data: str) -> Task:
  """The task that `c.mixture.tasks` calls `name`, one split of it.

  Raises:
    Mistake: no such task, or its arguments or its data are wrong.
  """
  tasks = config['mixture']['tasks']
  if name not in tasks:
    raise Mistake(f'c.mixture.tasks has no {name!r}: {lookup.nearest(name, tasks)}')
  task = {k: v for k, v in tasks[name].items() if k not in SHARES}
  where = f'c.mixture.tasks.{name}'
  return lookup.make('tasks', task, where, split=split, data=data)


def make_mixture(config: Mapping[str, Any], data: str) -> Mixture:
  """The training split of every task of the mixture, with its weight, if it has one."""
  if not config['mixture']['tasks']:
    raise Mistake('c.mixture.tasks is empty: there is nothing to train on.')
  return {
    name: (make_task(config, name, 'train', data), task.get('weight'))
    for name, task in config['mixture']['tasks'].items()
  }


def texts(mixture: Mixture) -> Iterator[str]:
  """All texts of a mixture, task by task: what a tokenizer is trained on."""
  for task, _ in mixture.values():
    for i in range(len(task)):
      yield from _texts(task.example(i))


def _texts(example: Example) -> Iterator[str]:
  """What is said in an example, control lines included."""
  match example:
    case Text():
      yield turns.text_of(example.text, example.control)
    case Label():
      yield example.text
    case Conversation():
      yield from (turn.text for turn in turns.with_control(example))
    case Pair():
      yield from _texts(example.prompt)
      yield from (example.chosen, example.rejected)


def make_origin(config: Mapping[str, Any], say: Say) -> Origin | None:
  """What the run starts from: `c.init` or `c.resume`, if one of them is said."""
  if config['init'] and config['resume']:
    raise Mistake('c.init takes weights, c.resume all: one of them is allowed.')
  name = config['init'] or config['resume']
  return find_origin(name, say=say) if name else None


def with_model_of(config: Mapping[str, Any], origin: Origin | None) -> dict[str, Any]:
  """The config whose c.model is that of the origin, with its own settings on top."""
  if origin is None:
    return dict(config)
  return {**config, 'model': {**origin.model, **config['model']}}


def with_labels_of(config: Mapping[str, Any], data: str) -> dict[str, Any]:
  """The config that says which classes a class head tells apart, where the data do.

  Raises:
    Mistake: its tasks have different labels, or others than the config says.
  """
  model, mixture = config['model'], config['mixture']
  if 'classes' not in model.get('outputs', ()):
    return dict(config)
  found = {
    name: tuple(getattr(task, 'labels', ()))
    for name, (task, _) in make_mixture(config, data).items()
    if task.kind == 'label'
  }
  kinds = set(found.values())
  if len(kinds) > 1:
    raise Mistake(f'c.mixture.tasks: one class head serves one set of labels: {found}.')
  labels = kinds.pop() if kinds else ()
  if not labels:
    return dict(config)
  said = model.get('classes') or len(labels)
  if said != len(labels):
    shown = ', '.join(labels[:8]) + (', ...' if len(labels) > 8 else '')
    raise Mistake(f'c.model.classes={said}: the data have {len(labels)}: {shown}.')
  tasks = {
    name: {**task, 'labels': task.get('labels') or labels} if name in found else task
    for name, task in mixture['tasks'].items()
  }
  return {
    **config,
    'model': {**model, 'classes': len(labels)},
    'mixture': {**mixture, 'tasks': tasks},
  }


def count_labels(mixture: Mixture) -> list[int]:
  """Examples of each class in the tasks of labels."""
  found: collections.Counter[int] = collections.Counter()
  classes = 0
  for task, _ in mixture.values():
    if task.kind == 'label':
      classes = max(classes, len(getattr(task, 'labels', ())))
      examples = map(task.example, range(len(task)))
      found.update(int(x.label) for x in examples if isinstance(x, Label))
  return [found[n] for n in range(classes)]


def make_tokenizer(
  config: Mapping[str, Any],
  mixture: Mixture,
  path: epath.Path,
  given: Origin | None,
  say: Say,
) -> Tokenizer:
  """The run's tokenizer: from its folder, from what it starts from, or a new one.

  Raises:
    Mistake: the folder's tokenizer is not that of c.init or c.resume.
  """
  place = path / 'tokenizer'
  if not place.exists():
    if given:
      say(f'The tokenizer is that of {given.name}.')
      tokenizer = given.tokenizer
    else:
      tokenizer = lookup.make(
        'tokenizers',
        config['tokenizer'],
        'c.tokenizer',
        texts=lambda: texts(mixture),
        say=say,
      )
    tokenizer.save(place)
    if given and given.template:
      given.template.save(place)
    return tokenizer
  tokenizer = store.load(place)
  if given and given.tokenizer.digest != tokenizer.digest:
    raise Mistake(
      f'the tokenizer of {path} ({tokenizer.digest[:12]}) is not that of {given.name} '
      f'({given.tokenizer.digest[:12]}): start afresh (--fresh).'
    )
  return tokenizer


def make_source(
  config: Mapping[str, Any],
  mixture: Mixture,
  tokenizer: Tokenizer,
  path: epath.Path,
  say: Say,
  **settings: Any,
) -> loader.DataSource:
  """The batches of `c.mixture`; further settings are those of loader.make_source.

  Args:
    config: the run's.
    mixture: of `make_mixture`.
    tokenizer: of `make_tokenizer`, which wrote it into the run's folder.
    path: the run's folder, for the template and the shards.
    say: takes lines for the user.
    **settings: on top of the config's.
  """
  given = {k: v for k, v in config['mixture'].items() if k != 'tasks'}
  for key in given:
    if key not in SETTINGS:
      raise Mistake(f'c.mixture takes no {key!r}: {lookup.nearest(key, SETTINGS)}')
  given |= {'batch_size': config['batch_size'], 'seed': config['seed']}
  tasks = config['mixture']['tasks']
  said = {name: task.get('epochs') for name, task in tasks.items()}
  given['epochs'] = {name: count for name, count in said.items() if count is not None}
  return loader.make_source(
    mixture,
    tokenizer,
    template=template.load(path / 'tokenizer', tokenizer),
    shards=path / 'shards',
    say=say,
    **{**given, **settings},
  )


def eval_tasks(config: Mapping[str, Any], data: str) -> dict[str, Task]:
  """What each of `c.evals` reads, by its name: keys `task` and `split` of it."""
  first = next(iter(config['mixture']['tasks']))
  return {
    name: make_task(
      config, settings.get('task') or first, settings.get('split', 'val'), data
    )
    for name, settings in config['evals'].items()
  }


def make_evaluators(
  config: Mapping[str, Any],
  model: Model,
  tokenizer: Tokenizer,
  tasks: Mapping[str, Task],
  path: epath.Path,
  say: Say,
) -> dict[str, Evaluator]:
  """The evaluators of `c.evals` by name, each over its task of `eval_tasks`.

  `path` is the run's folder, for its template and its shards.

  Raises:
    Mistake: their arguments are wrong, or keep_best or early_stop watch no number.
  """
  found = {}
  form = template.load(path / 'tokenizer', tokenizer)
  for name, settings in config['evals'].items():
    where = f'c.evals.{name}'
    settings = {k: v for k, v in settings.items() if k not in ('task', 'split')}
    found[name] = lookup.make(
      'evals',
      settings,
      where,
      model=model,
      tokenizer=tokenizer,
      template=form,
      roles=config['mixture'].get('roles'),
      task=tasks[name],
      length=config['mixture']['length'],
      batch_size=config['batch_size'],
      shards=path / 'shards',
      say=say,
    )
  for key in ('keep_best', 'early_stop'):
    if config[key]['metric']:
      _check_metric(f'c.{key}', config[key]['metric'], config[key]['mode'], found)
  return found


def _check_metric(
  key: str, metric: str, mode: str, evals: Mapping[str, Evaluator]
) -> None:
  name, _, number = metric.partition('/')
  names = [f'{n}/{number}' for n, e in evals.items() for number in e.names]
  known = name in evals and (not evals[name].names or number in evals[name].names)
  if not known:
    allowed = lookup.nearest(metric, names) if names else 'c.evals has none.'
    raise Mistake(f'{key}.metric={metric}: no evaluation gives it. {allowed}')
  if mode not in ('min', 'max'):
    raise Mistake(f'{key}.mode={mode}: allowed are min and max.')


class Run(NamedTuple):
  """A trained model, ready to use."""

  name: str  # As it was asked for.
  model: Model
  weights: Params
  tokenizer: Tokenizer
  step: int
  length: int  # Tokens of context.
  template: Template | None = None  # How it writes conversations, if it can.
  controls: tuple[str, ...] = ()  # Names of what it was trained to be asked for.

  def generate(self, prompt: text.Prompt, **settings: Any) -> str:
    """Continues a text, or answers a conversation.

    Settings are those of generate.text (max_tokens, seed, ...); control is a dict of
    what is asked for: {'style': 'formal'}.
    """
    return self.generate_all([prompt], **settings)[0].text

  def generate_all(
    self,
    prompts: Sequence[text.Prompt],
    *,
    control: Mapping[str, str] | None = None,
    **settings: Any,
  ) -> list[text.Result]:
    """Continues several texts, or answers conversations, together."""
    writing: dict[str, Any] = {
      'template': self.template,
      'control': self.check_control(control),
    }
    counts = {k: settings[k] for k in ('max_tokens', 'n') if k in settings}
    size = text.slots_and_length(
      self.tokenizer, prompts, context=self.length, **writing, **counts
    )
    machine = engine.make_engine(self.model, self.weights, **size)
    return text.generate_text(machine, self.tokenizer, prompts, **writing, **settings)

  def chat(
    self, messages: Conversation | Sequence[Mapping[str, str]], **settings: Any
  ) -> str:
    """What the assistant says next; settings are those of `generate`.

    Args:
      messages: turns so far, [{'role': 'user', 'content': 'Hi'}], or a Conversation.
      **settings: of `generate`.

    Raises:
      Mistake: messages that are none, or that its template refuses.
    """
    if not isinstance(messages, Conversation):
      try:
        messages = Conversation(turns_of(list(messages)))
      except ValueError as error:
        raise Mistake(f'messages: {error}.') from None
    return self.generate(messages, **settings).strip()

  def check_control(
    self, control: Mapping[str, str] | None
  ) -> tuple[tuple[str, str], ...]:
    """What is asked for, as pairs.

    Raises:
      Mistake: the run was trained with control, but not with one of that name.
    """
    for name in control or ():
      if self.controls and name not in self.controls:
        near = lookup.nearest(name, self.controls)
        raise Mistake(f'{self.name} knows no control {name!r}: {near}')
    return tuple((control or {}).items())


def open_run(path: Any, step: str | int = '', say: Say = files.say) -> Run:
  """A trained model -> model, weights and tokenizer, on the devices at hand.

  Args:
    path: the run folder.
    step: latest, best or a number; '' is best where the run keeps a best, else latest.
    say: told which step it is.

  Raises:
    Mistake: no run folder, or no such step.
  """
  origin = find_origin(str(path), step, say)
  model = make_model(origin.model, origin.tokenizer)
  mesh = sharding.make_mesh({'data': 1}, jax.local_devices()[:1])
  with sharding.use(mesh):
    number, weights = origin.weights()
  say(f'{path}: step {number}')
  return Run(
    origin.name,
    model,
    weights,
    origin.tokenizer,
    number,
    origin.length,
    origin.template,
    origin.controls,
  )
