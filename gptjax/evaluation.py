"""Evaluations of a trained model by name: which evaluator, on which task and split."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath

from gptjax import files, folder, lookup, run, sharding
from gptjax.evals import _scores
from gptjax.run import Run
from gptjax.words import Evaluator, Mistake, Task

Say = Callable[[str], None]
# What scores the tasks of a kind, where no evaluator is named.
BY_KIND = {'text': 'perplexity', 'conversation': 'text', 'label': 'classify'}


class Evaluation(NamedTuple):
  """What was found under a name."""

  name: str  # As it was asked for.
  evaluator: str
  task: str
  split: str
  examples: int
  numbers: dict[str, float]
  intervals: dict[str, tuple[float, float]]  # 95 %, by bootstrap over the examples.
  notes: dict[str, Any]
  answers: Sequence[dict[str, Any]]  # To each example, where it was answered.
  seconds: float


class _Asked(NamedTuple):
  """What a name stands for."""

  evaluator: dict[str, Any]  # Its settings, with its name; none: by the task's kind.
  task: dict[str, Any]
  where: str  # The config key of the task, or its name.
  split: str


def evaluate(
  trained: Run,
  names: Sequence[str],
  *,
  split: str = '',
  limit: int | None = None,
  max_tokens: int | None = None,
  data: str = '',
  say: Say = files.say,
) -> Iterator[Evaluation]:
  """Evaluates a trained model under each of the names, all of which are checked first.

  Args:
    trained: of `open_run`.
    names: a name of c.evals of the run; an evaluator, on the first task of the run; a
      task of the run, or of the room tasks, scored as its kind says.
    split: train, val, test or all; '' is test, of an evaluator of c.evals its own.
    limit: examples of each, from the first; None: all.
    max_tokens: of a written answer; None: as the evaluator says.
    data: the folder of data sets.
    say: takes lines for the user.

  Raises:
    Mistake: an unknown name, or one that does not fit the model or the data.
  """
  config = config_of(trained.name)
  given = {'limit': limit, 'max_tokens': max_tokens}
  given = {key: value for key, value in given.items() if value is not None}
  mesh = sharding.make_mesh({'data': 1}, jax.local_devices()[:1])
  with sharding.use(mesh):
    made = []
    for name in names:
      asked = _ask(config, name, split)
      task = _task(asked, data or config.get('data') or '')
      kind, evaluator = _make(trained, config, name, asked, task, given, say)
      made.append((name, kind, task, asked.split, evaluator))
  for name, kind, task, part, evaluator in made:
    begin = time.monotonic()
    with sharding.use(mesh):
      assert evaluator.scores is not None
      found = evaluator.scores(trained.weights)
    yield Evaluation(
      name=name,
      evaluator=kind,
      task=task.name,
      split=part,
      examples=min(len(task), limit or len(task)),
      numbers=_scores.numbers(found),
      intervals=_scores.intervals(found),
      notes=found.notes,
      answers=found.examples,
      seconds=time.monotonic() - begin,
    )


def config_of(name: str) -> dict[str, Any]:
  """The config of a run folder; {} of what is no run folder, such as hf:X."""
  place = epath.Path(name)
  return folder.read_config(place) if (place / 'config.json').exists() else {}


def _ask(config: Mapping[str, Any], name: str, split: str) -> _Asked:
  """What a name stands for: first what the run calls so, then what we do."""
  evals, tasks = config.get('evals', {}), config.get('mixture', {}).get('tasks', {})
  if name in evals:
    settings = {k: v for k, v in evals[name].items() if k not in ('task', 'split')}
    task = evals[name].get('task') or next(iter(tasks))
    return _of_run(tasks, task, settings, split or evals[name].get('split', 'val'))
  if name in tasks:
    return _of_run(tasks, name, {}, split or 'test')
  evaluators, known = lookup.choices('evals'), lookup.choices('tasks')
  if name in evaluators:
    if not tasks:
      raise Mistake(
        f'--evals={name}: there is no run whose task it could judge; name a task: '
        f'{", ".join(known)}.'
      )
    return _of_run(tasks, next(iter(tasks)), {'name': name}, split or 'test')
  if name in known:
    return _Asked({}, {'name': name}, f'--evals={name}', split or 'test')
  near = lookup.nearest(name, {*evals, *tasks, *evaluators, *known})
  raise Mistake(f'--evals={name}: no such evaluation. {near}')


def _of_run(
  tasks: Mapping[str, Any], name: str, evaluator: dict[str, Any], split: str
) -> _Asked:
  if name not in tasks:
    raise Mistake(f'c.mixture.tasks has no {name!r}: {lookup.nearest(name, tasks)}')
  task = {k: v for k, v in tasks[name].items() if k not in run.SHARES}
  return _Asked(evaluator, task, f'c.mixture.tasks.{name}', split)


def _task(asked: _Asked, data: str) -> Task:
  return lookup.make('tasks', asked.task, asked.where, split=asked.split, data=data)


def _make(
  trained: Run,
  config: Mapping[str, Any],
  name: str,
  asked: _Asked,
  task: Task,
  given: Mapping[str, Any],
  say: Say,
) -> tuple[str, Evaluator]:
  """The evaluator and its name; `given` comes on top of its settings."""
  kind = 'classify' if getattr(task, 'labels', ()) else BY_KIND.get(task.kind)
  settings = asked.evaluator or {'name': kind}
  if settings['name'] is None:
    raise Mistake(f'{task.name} is of kind {task.kind}, which no evaluator scores.')
  made = lookup.make(
    'evals',
    settings,
    f'--evals={name}',
    model=trained.model,
    tokenizer=trained.tokenizer,
    template=trained.template,
    roles=config.get('mixture', {}).get('roles'),
    task=task,
    length=trained.length,
    batch_size=config.get('batch_size', 8),
    say=say,
    **given,
  )
  return settings['name'], made
