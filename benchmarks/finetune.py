"""Fine-tuning SmolLM2-135M against transformers and peft: tokens per second and memory.

  python -m benchmarks.finetune [--kinds=lora,full] [--rows=4] [--length=512]
                                [--pairs=5] [--rank=16] [--json]

A step is forward, backward, clipping and AdamW in float32 on rows of random tokens,
half of which weigh, as those of an assistant would. `lora`: adapters of all products of
the layers over a base that stays (there peft with `all-linear`); `full`: all weights.
Both sides load the folder that `convert` writes from the name smollm2, and their first
losses must agree to 1e-3. Every side is a process of its own and the two take turns; a
ratio is the median over the pairs. Memory is the peak of the process: imports, loading
and compiling included.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.sides import Side, seconds_of, serve
from gptjax import flags

KINDS = ('lora', 'full')
SIDES = ('gptjax', 'peft')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kinds', default=','.join(KINDS))
  parser.add_argument('--rows', type=int, default=4)
  parser.add_argument('--length', type=int, default=512)
  parser.add_argument('--pairs', type=int, default=5)
  parser.add_argument('--rank', type=int, default=16)
  parser.add_argument('--json', action='store_true')
  parser.add_argument('--worker', help=argparse.SUPPRESS)
  parser.add_argument('--weights', help=argparse.SUPPRESS)
  a = parser.parse_args()
  if a.worker:
    work(a)
    return
  with tempfile.TemporaryDirectory() as folder:
    write_weights(f'{folder}/smollm2')
    for kind in a.kinds.split(','):
      report(compare(kind, f'{folder}/smollm2', a), a.json)


def write_weights(folder: str) -> None:
  """What both sides load, written by a process that ends."""
  import subprocess

  command = [sys.executable, '-m', 'gptjax.convert', '--source=smollm2']
  subprocess.run([*command, f'--target=hf:{folder}'], check=True)


def compare(kind: str, weights: str, a: argparse.Namespace) -> dict[str, Any]:
  """Both sides on one kind of fine-tuning, taking turns."""
  said = [f'--{name}={getattr(a, name)}' for name in ('rows', 'length', 'rank')]
  said += [f'--kinds={kind}', f'--weights={weights}']
  sides = {side: Side(side, 'benchmarks.finetune', *said) for side in SIDES}
  for s in sides.values():
    s.ask('ready')
  loss = {side: s.ask('loss') for side, s in sides.items()}
  times: dict[str, list[float]] = {side: [] for side in sides}
  for _ in range(a.pairs):
    for side, s in sides.items():
      times[side].append(s.ask('time'))
  memory = {side: s.ask('memory') for side, s in sides.items()}
  for s in sides.values():
    s.close()
  ours, theirs = SIDES
  assert abs(loss[ours] - loss[theirs]) < 1e-3, f'{kind}: first losses differ: {loss}'
  pairs = zip(times[theirs], times[ours], strict=True)
  tokens = a.rows * a.length
  return dict(
    kind=kind,
    loss=loss[ours],
    tokens_per_second={k: tokens / statistics.median(v) for k, v in times.items()},
    ratio=statistics.median(t / o for t, o in pairs),
    peak_bytes=memory,
    seconds=times,
  )


def work(a: argparse.Namespace) -> None:
  """The process of one side; slow imports are done before the first question."""
  if a.worker == 'gptjax':
    flags.huge_pages()
    import gptjax.origin  # noqa: F401
  else:
    import transformers  # noqa: F401
  side = our_side if a.worker == 'gptjax' else their_side

  def make() -> dict[str, Callable[[], Any]]:
    step = side(a)
    return dict(loss=step, time=lambda: seconds_of(step), memory=peak)

  serve(make)


def peak() -> int:
  """Bytes of memory that the process has held at most."""
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def make_batch(a: argparse.Namespace, vocab: int) -> tuple[np.ndarray, ...]:
  """Tokens, targets and weights [B, T]."""
  draw = np.random.default_rng(0)
  tokens, targets = draw.integers(0, vocab, (2, a.rows, a.length)).astype(np.int32)
  weights = (np.arange(a.length) % 128 >= 64) * np.ones((a.rows, 1))
  return tokens, targets, weights.astype(np.float32)


def our_side(a: argparse.Namespace) -> Callable[[], float]:
  """This project: the step that train.py runs, with what experiments/sft.py says."""
  import jax
  import jax.numpy as jnp

  from gptjax import origin, sharding, start, tree
  from gptjax import step as steps
  from gptjax.objectives.next_token import next_token
  from gptjax.trained import make_trained

  lora = dict(rank=a.rank, alpha=2.0 * a.rank, targets=('layers/*',))
  c: dict[str, Any] = dict(
    lora=lora if a.kinds == 'lora' else {},
    init='smollm2',
    resume=None,
    steps=1000,
    optim=dict(name='adamw', lr=1e-5, decay='constant', weight_decay=0.0),
  )
  given = origin.find_origin(f'hf:{a.weights}')
  model = origin.make_model({**given.model, 'remat': 'dots'}, given.tokenizer)
  trained = make_trained(c, model)
  optimizer = origin.make_optimizer(c, trained)
  with sharding.use(sharding.make_mesh({'data': 1}, jax.devices()[:1])):
    whole = tree.nested(origin.fit(given, model).leaves)
    base = trained.base(whole)
    frozen = start.laid_out({'base': base} if base else {}, model)
    params = trained.params(whole, jax.random.key(0))
    del whole, base
    state = steps.new_state(params, optimizer, jax.random.key(1))
    del params
    names = ('tokens', 'targets', 'weights')
    arrays = make_batch(a, given.tokenizer.size)
    batch: dict[str, Any] = dict(zip(names, map(jnp.asarray, arrays), strict=True))
    train_step = steps.make_train_step(
      model, next_token(), optimizer, assemble=trained.assemble, axes=trained.axes
    )
    jitted = jax.jit(train_step, donate_argnums=0)
    compiled = jitted.lower(state, batch, frozen).compile()

  def step() -> float:
    nonlocal state
    state, metrics = compiled(state, batch, frozen)
    return float(metrics['loss'].total) / float(metrics['loss'].count)

  return step


def their_side(a: argparse.Namespace) -> Callable[[], float]:
  """transformers, with peft for adapters; optimizer and clipping of PyTorch."""
  import peft
  import torch
  from transformers import AutoModelForCausalLM

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model: Any = AutoModelForCausalLM.from_pretrained(a.weights, dtype=torch.float32)
  vocab = model.config.vocab_size
  if a.kinds == 'lora':
    said = peft.LoraConfig(
      r=a.rank,
      lora_alpha=2 * a.rank,
      lora_dropout=0.0,
      target_modules='all-linear',
      task_type='CAUSAL_LM',
    )
    model = peft.get_peft_model(model, said)
  model.train()
  params = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(params, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0)
  arrays = make_batch(a, vocab)
  tokens, targets = (torch.from_numpy(x).long() for x in arrays[:2])
  targets[torch.from_numpy(arrays[2]) == 0] = -100  # What the loss passes over.

  def step() -> float:
    logits = model(input_ids=tokens, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
      logits.float().view(-1, vocab), targets.view(-1)
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
    return loss.item()

  return step


def report(result: dict[str, Any], as_json: bool) -> None:
  """One kind, as a line of JSON or as a table."""
  if as_json:
    print(json.dumps(result), flush=True)
    return
  print(f'{result["kind"]}: gptjax is {result["ratio"]:.2f} x as fast as peft')
  for side, rate in result['tokens_per_second'].items():
    memory = result['peak_bytes'][side] / 1e9
    print(f'  {side:7} {rate:9,.0f} tokens/s   peak {memory:.2f} GB', flush=True)


if __name__ == '__main__':
  main()
