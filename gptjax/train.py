"""The one loop: stages differ only in where batches come from and in the objective.

Its order matters: save, evaluate, then draw the batch. A step's checkpoint has seen as
many batches as its number says; what was evaluated there is evaluated again on resume,
so that the files of a resumed run equal those of an unbroken one.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Generator, Mapping
from typing import Any

import jax
import ml_collections
from etils import epath

from gptjax import (
  checkpoint,
  files,
  folder,
  metrics,
  progress,
  run,
  screen,
  sharding,
  signals,
  start,
)
from gptjax import step as steps
from gptjax.config import check_config
from gptjax.words import Failure, Frozen, Leave, Params, TrainState

Say = Callable[[str], None]


def train(
  config: ml_collections.ConfigDict,
  workdir: str,
  *,
  overrides: Mapping[str, Any] | None = None,
  fresh: bool = False,
  data: str = '',
  say: Say = files.say,
) -> dict[str, float]:
  """Trains what the config says in the folder `workdir`, or goes on there.

  Returns:
    The last evaluation's numbers, by name ('val/bits_per_byte').

  Raises:
    Mistake: the config, the data or the folder are wrong.
    Leave: stopped by a signal; the same call goes on.
    Failure: it cannot go on: a full disk, too many bad steps.
  """
  c = config.to_dict()
  check_config(c)
  screen.compile_cache(c['compile_cache'], say)
  mesh = sharding.make_mesh(c['mesh'])
  rules = sharding.make_rules(c['rules'])
  lines = [f'--config.{key}={value}' for key, value in (overrides or {}).items()]
  with contextlib.ExitStack() as stack:
    preempted = stack.enter_context(signals.asking(say))
    given = run.make_origin(c, say)
    c = run.with_labels_of(run.with_model_of(c, given), c['data'] or data)
    place = folder.open_folder(workdir, c, fresh=fresh, overrides=lines, say=say)
    stack.callback(place.close)
    if result := _finished(place.path, c):
      say(f'{place.path} is finished.')
      screen.show_result(c, place.path, result, say)
      return result
    stack.enter_context(sharding.use(mesh, rules))
    parts = start.assemble(c, place.path, given, c['data'] or data, say)
    saves = checkpoint.open_checkpoints(
      place.path / 'checkpoints',
      keep=c['keep'],
      keep_best=c['keep_best'] if c['keep_best']['metric'] else None,
      say=say,
    )
    state, frozen, offsets = start.begin(c, parts, saves, place, given, say)
    screen.show_start(c, parts.model, state.params, frozen, mesh, say)
    log = metrics.open_log(
      place.path, offsets, step=int(state.step), track=c['track'], config=c, say=say
    )
    with contextlib.closing(saves), contextlib.closing(log):
      result = _loop(c, parts, state, frozen, saves, log, preempted)
    key = {'steps': c['steps'], 'early_stop': c['early_stop'], 'numbers': result}
    files.write(place.path / 'result.json', json.dumps(key) + '\n')
    screen.show_result(c, place.path, result, say)
  return result


def _loop(
  c: dict[str, Any],
  parts: start.Parts,
  state: TrainState,
  frozen: Frozen,
  saves: checkpoint.Checkpoints,
  log: metrics.Log,
  preempted: Callable[[], bool],
) -> dict[str, float]:
  """Trains to the end; returns the numbers of the last evaluation."""
  clock = progress.Stopwatch()
  speed = screen.Speed(c, parts.model, frozen)
  watched = [c[key]['metric'].partition('/')[0] for key in ('keep_best', 'early_stop')]
  guard = _BadSteps(c['max_bad_steps'])
  numbers: dict[str, float] = {}
  first = int(state.step)
  with progress.Progress(c['steps'], first) as bar, _tracing(c, log) as trace:
    for step in range(first, c['steps'] + 1):
      last, leave = step == c['steps'], preempted()
      judged = [name for name in watched if name in parts.evals]
      if (
        last
        or leave
        or _due(step, c['save_every'])
        or any(_due(step, parts.evals[name].every) for name in judged)
      ):
        with clock.over('save'):
          saves.save(step, state, parts.source.get_state(), log.offsets())
      if leave:
        saves.wait()
        raise Leave(f'stopped; the same command goes on from step {step}.')
      with clock.over('evals'):
        scores = _evaluate(step, last, c, parts, state, frozen, log)
        saves.score(step, scores)
        numbers |= scores
      if last or (scores and stalled(log, c['early_stop'])):
        break
      trace(step)
      with clock.over('data'):
        batch = parts.source.next(functools.partial(_weights, parts, state, frozen))
      if step == first:
        flops = parts.model.flops((c['batch_size'], c['mixture']['length']))
        steps.check_program(parts.train_step, state, batch, frozen, flops)
      with jax.profiler.StepTraceAnnotation('train', step_num=step):
        state, found = parts.train_step(state, batch, frozen)
      written = log.flush()  # Of the step before: its numbers are there.
      if written:
        bar.update(*speed.shown(*written))
      if _due(step + 1, c['log_every']) or step == 0:
        log.later(step + 1, found)
        log.time(step + 1, speed.lap(step + 1, clock.lap(), parts.source))
      guard.check(step, found['bad'])
  if not last:
    bar.say(f'Stopped early at step {step}: {c["early_stop"]["metric"]} stalled.')
  return {'step': step} | numbers


def _weights(parts: start.Parts, state: TrainState, frozen: Frozen) -> Params:
  return parts.optimizer.weights(state.opt_state, state.params, frozen)


def _due(step: int, every: int) -> bool:
  return bool(every) and step > 0 and step % every == 0


def _evaluate(
  step: int,
  last: bool,
  c: dict[str, Any],
  parts: start.Parts,
  state: TrainState,
  frozen: Frozen,
  log: metrics.Log,
) -> dict[str, float]:
  """Runs what is due at a step; numbers by full name."""
  found: dict[str, float] = {}
  due = {n: e for n, e in parts.evals.items() if last or _due(step, e.every)}
  sample = parts.sample if last or _due(step, c['samples']['every']) else None
  if due or sample:
    weights = _weights(parts, state, frozen)
    for name, evaluator in due.items():
      found |= log.write(step, name, evaluator.run(weights))
    if sample:
      log.sample(f'## step {step}\n\n{sample(weights)}\n')
  return found


def stalled(log: metrics.Log, early_stop: Mapping[str, Any]) -> bool:
  """Whether the metric has not become better for `patience` evaluations.

  A function of metrics.jsonl alone, so that a resumed run decides the same.
  """
  if not early_stop['metric']:
    return False
  values = [value for _, value in log.history(early_stop['metric'])]
  if len(values) <= early_stop['patience']:
    return False
  better = max if early_stop['mode'] == 'max' else min
  before, since = values[: -early_stop['patience']], values[-early_stop['patience'] :]
  return better([better(before), *since]) == better(before)


class _BadSteps:
  """Ends the run after too many skipped updates in a row; reads one step late."""

  def __init__(self, limit: int):
    self._limit, self._row, self._pending = limit, 0, None

  def check(self, step: int, bad: Any) -> None:
    """Notes a step's `bad`, and looks at that of the step before."""
    pending, self._pending = self._pending, bad
    if pending is None:
      return
    self._row = self._row + 1 if float(pending.total) else 0
    if self._limit and self._row >= self._limit:
      raise Failure(
        f'{self._row} updates in a row had no finite gradient or no target of weight, '
        f'up to step {step}: '
        'lower c.optim.lr or look at the data there. Good checkpoints are kept.'
      )


@contextlib.contextmanager
def _tracing(c: dict[str, Any], log: metrics.Log) -> Generator[Callable[[int], None]]:
  """Yields what starts and stops the profiler at the steps of c.profile."""
  start, count = c['profile']['start'], c['profile']['steps']
  running = False

  def at(step: int) -> None:
    nonlocal running
    if count and step == start and not running:
      jax.profiler.start_trace(str(log.folder / 'profile'))
      running = True
    elif running and step >= start + count:
      jax.profiler.stop_trace()
      running = False

  try:
    yield at
  finally:
    if running:
      jax.profiler.stop_trace()


def _finished(path: epath.Path, c: dict[str, Any]) -> dict[str, float] | None:
  """The result of a run that ended under the same steps and early stopping."""
  file = path / 'result.json'
  if not file.exists():
    return None
  try:
    found = json.loads(file.read_text())
    same = all(found[key] == c[key] for key in ('steps', 'early_stop'))
    return found['numbers'] if same else None
  except (ValueError, KeyError, TypeError):
    return None  # Cut short: the loop finds its checkpoint and evaluates again.
