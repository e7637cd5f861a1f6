"""Time to a known loss: characters of Shakespeare, against PyTorch on the same machine.

  python -m benchmarks.shakespeare --data=FOLDER [--pairs=3]

Each pair runs, one after the other: benchmarks.torch_char (the well-known CPU setting
to its end), then experiments/shakespeare_char.py twice: as `fast`, to reach PyTorch's
loss, and at its full length, to see what the same time is worth. The clock of all three
runs from the start of the process to the end of the evaluation: importing and compiling
included, with an empty compilation cache. Losses are nats per character over the last
tenth of the text, each position once.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import types

from gptjax import flags

OPTIONS = {
  'data': flags.Flag('', 'Folder of data sets that holds tinyshakespeare/.'),
  'pairs': flags.Flag(1, 'How often; medians are printed.', low=1),
}


def ours(arg: str, data: str) -> dict[str, float]:
  """Seconds and nats of one run of the experiment."""
  with tempfile.TemporaryDirectory() as scratch:
    command = [sys.executable, '-m', 'gptjax.main', f'--data={data}']
    command += [f'--config=experiments/shakespeare_char.py:{arg}']
    command += [f'--workdir={scratch}/run']
    environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': f'{scratch}/cache'}
    start = time.perf_counter()
    process = subprocess.Popen(
      command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    seconds, last = 0.0, 0
    metrics = pathlib.Path(scratch, 'run', 'metrics.jsonl')
    while process.poll() is None:
      time.sleep(0.02)
      count = metrics.read_text().count('val/nats') if metrics.exists() else 0
      if count > last:
        seconds, last = time.perf_counter() - start, count
    assert process.stderr is not None
    if process.returncode:
      raise RuntimeError(process.stderr.read().decode())
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    nats = [line['val/nats_per_token'] for line in lines if 'val/bits_per_byte' in line]
    return {'seconds': round(seconds, 2), 'nats': round(nats[-1], 4)}


def theirs(data: str) -> dict[str, float]:
  """Seconds and nats of one run of the peer."""
  command = [sys.executable, '-m', 'benchmarks.torch_char']
  command += [f'--data={data}/tinyshakespeare']
  return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def main(values: types.SimpleNamespace) -> None:
  rows = []
  for _ in range(values.pairs):
    row = {'pytorch': theirs(values.data)}
    row |= {'fast': ours('fast', values.data), 'full': ours('', values.data)}
    print(json.dumps(row), flush=True)
    rows.append(row)

  def median(name: str, key: str) -> float:
    return statistics.median(row[name][key] for row in rows)

  print(f'{"":8} {"seconds":>8} {"nats":>7} {"time / PyTorch":>15}')
  for name in rows[0]:
    share = statistics.median(
      r[name]['seconds'] / r['pytorch']['seconds'] for r in rows
    )
    numbers = f'{median(name, "seconds"):8.1f} {median(name, "nats"):7.3f}'
    print(f'{name:8} {numbers} {share:15.2f}')


if __name__ == '__main__':
  flags.command(__doc__, main, OPTIONS)
