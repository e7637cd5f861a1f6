"""What Ctrl-C and SIGTERM do: one line and an exit code, never a traceback.

A process may be killed at any moment without loss, so ending it at once is as good as
unwinding it, and works wherever it is, in the middle of an import too. A run that has
made a step saves first (`asking`).
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Generator
from typing import Any

from gptjax.mistakes import Leave

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


def at_once() -> None:
  """From here on they end the process: Ctrl-C with 130, SIGTERM with 75.

  Those held back by `hold` come now.
  """
  for number in _NUMBERS:
    signal.signal(number, _end)
  if hasattr(signal, 'pthread_sigmask'):
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _NUMBERS)


def hold() -> None:
  """Holds them back, over an exec too, until `at_once` is called."""
  if hasattr(signal, 'pthread_sigmask'):
    signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)


def _end(number: int, frame: Any) -> None:
  del frame
  terminated = number == signal.SIGTERM
  with contextlib.suppress(Exception):  # We may be in the middle of writing.
    sys.stdout.flush()
  line = 'stopped; the same command begins again' if terminated else 'interrupted'
  os.write(2, f'gptjax: {line}.\n'.encode())
  os._exit(75 if terminated else 130)


@contextlib.contextmanager
def asking(say: Callable[[str], None]) -> Generator[Callable[[], bool]]:
  """Within, SIGTERM and the first Ctrl-C ask the loop to leave; it looks once a step.

  Before it looks for the first time, which may be minutes away, they end a command at
  once. On several hosts to look is a collective, so that all leave at the same step.

  Raises:
    Leave: before the first look, where no command is the caller.
    KeyboardInterrupt: at a second Ctrl-C.
  """
  import jax  # Takes seconds: signals must be caught before.

  from gptjax import steps

  asked = begun = False

  def note(number: int, frame: Any) -> None:
    nonlocal asked
    if asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    asked = True  # Whoever is running may swallow what is raised: the loop will know.
    if not begun and jax.process_count() == 1:
      if old[number] is _end:
        _end(number, frame)
      raise Leave('stopped before the first step; the same command begins again.')
    say('Stopping: saving after this step. Ctrl-C again leaves at once.')

  def preempted() -> bool:
    nonlocal begun
    begun = True
    return steps.anywhere(asked)

  old: dict[int, Any] = {}
  with contextlib.suppress(ValueError):  # Not the main thread: no signals here.
    for number in _NUMBERS:
      old[number] = signal.signal(number, note)
  try:
    yield preempted
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
