"""Sides of a benchmark: processes of their own that answer one question at a time.

Asked in turn, they see the same machine in the same minutes.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

_SECONDS = 2.0  # A turn takes about this long.


class Side:
  """A process that runs a module's worker and answers one question a line."""

  def __init__(self, kind: str, module: str, *arguments: str):
    self.kind = kind
    self.process = subprocess.Popen(
      [sys.executable, '-m', module, f'--worker={kind}', *arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    assert self.process.stdin is not None
    assert self.process.stdout is not None
    self.questions, self.answers = self.process.stdin, self.process.stdout

  def ask(self, question: str) -> Any:
    """The answer to one of the names that `serve` knows."""
    print(question, file=self.questions, flush=True)
    for line in self.answers:
      if line.startswith('answer '):
        return json.loads(line.removeprefix('answer '))
    raise RuntimeError(f'{self.kind} ended at {question!r}')

  def close(self) -> None:
    """Lets the process end, and waits for it."""
    self.questions.close()
    self.process.wait()


def serve(make: Callable[[], dict[str, Callable[[], Any]]]) -> None:
  """Answers from stdin what `make` gives functions for; 'ready' makes them first."""
  answers: dict[str, Callable[[], Any]] = {}

  def ready() -> bool:
    answers.update(make())
    return True

  answers['ready'] = ready
  for question in sys.stdin:
    print('answer', json.dumps(answers[question.strip()]()), flush=True)


def seconds_of(step: Callable[[], float]) -> float:
  """Seconds of a step: the median of a turn, after one step to warm up."""
  start, times = time.perf_counter(), []
  step()
  while len(times) < 2 or time.perf_counter() - start < _SECONDS:
    begin = time.perf_counter()
    step()
    times.append(time.perf_counter() - begin)
  return statistics.median(times)
