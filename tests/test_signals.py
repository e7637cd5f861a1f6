"""Ctrl-C and SIGTERM: one line and an exit code, whatever the process is doing."""

import signal
import subprocess
import sys

import pytest

COMMAND = """
import time
from gptjax import flags

def main(values):
  print('begun', flush=True)
  try:
    time.sleep(60)
  except BaseException:  # As the import of a library may.
    time.sleep(60)

flags.command('A command.', main, {})
"""
HELD = """
import os, sys
from gptjax import signals
if len(sys.argv) == 1:
  signals.hold()
  os.kill(os.getpid(), {number})
  os.execv(sys.executable, [sys.executable, '-c', sys.orig_argv[-1], 'again'])
signals.at_once()
"""
ENDS = [(signal.SIGINT, 130, 'interrupted'), (signal.SIGTERM, 75, 'the same command')]


@pytest.mark.parametrize(('number', 'code', 'says'), ENDS)
def test_a_signal_ends_a_command_with_one_line(number, code, says):
  process = subprocess.Popen(
    [sys.executable, '-c', COMMAND],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'begun\n'
  process.send_signal(number)
  out, err = process.communicate(timeout=30)
  assert (process.returncode, out) == (code, '')
  assert err.startswith('gptjax: ')
  assert says in err
  assert err.count('\n') == 1


@pytest.mark.parametrize(('number', 'code', 'says'), ENDS)
def test_one_that_comes_during_an_exec_is_not_lost(number, code, says):
  done = subprocess.run(
    [sys.executable, '-c', HELD.format(number=int(number))],
    capture_output=True,
    text=True,
    timeout=30,
  )
  assert done.returncode == code, done.stderr
  assert says in done.stderr
