"""Tokens per second of a whole train step, against PyTorch on the same machine.

  python -m benchmarks.train_step [--shapes=0.8M,12M,124M] [--pairs=5] [--rivals=eager]
                                  [--json] [--parts]

A step is forward, backward, clipping and AdamW on a GPT-2 (here the transformer with
its shapes, there `transformers`' GPT2LMHeadModel with the same weights; the losses of
the first step must agree to 1e-4). Every side is a process of its own and the two take
turns, so that both see the same machine; a ratio is the median over the pairs. The
ceiling is what a product of 2048 x 2048 matrices reaches in the same run.

Rivals: eager and compile (float32), autocast (bfloat16, eager). `--parts` adds where
the time goes here: seconds of each part's operations in a profile of the step.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.sides import Side, seconds_of, serve
from gptjax import flags


class Shape(NamedTuple):
  """Of a model and its batch."""

  layers: int
  heads: int
  embed: int
  length: int
  rows: int
  vocab: int


SHAPES = {
  '0.8M': Shape(4, 4, 128, 64, 12, 65),
  '12M': Shape(6, 6, 384, 256, 8, 4096),
  '124M': Shape(12, 12, 768, 512, 2, 50304),
}
RIVALS = ('eager', 'compile', 'autocast')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--shapes', default=','.join(SHAPES))
  parser.add_argument('--pairs', type=int, default=5)
  parser.add_argument('--rivals', default='eager')
  parser.add_argument('--json', action='store_true')
  parser.add_argument('--parts', action='store_true')
  parser.add_argument('--worker', help=argparse.SUPPRESS)
  parser.add_argument('--weights', help=argparse.SUPPRESS)
  a = parser.parse_args()
  if a.worker:
    work(a.worker, SHAPES[a.shapes], a.weights)
    return
  for name in a.shapes.split(','):
    report(compare(name, a.rivals.split(','), a.pairs, a.parts), a.json)


def compare(name: str, rivals: list[str], pairs: int, parts: bool) -> dict[str, Any]:
  """All sides on one shape, taking turns."""
  shape = SHAPES[name]
  tokens = shape.rows * shape.length
  with tempfile.TemporaryDirectory() as folder:
    weights = f'{folder}/weights.npz'
    said = ('benchmarks.train_step', f'--shapes={name}', f'--weights={weights}')
    sides = {kind: Side(kind, *said) for kind in ('gptjax', *rivals)}
    for s in sides.values():  # Ours writes the weights that the others read.
      s.ask('ready')
    first = {side: s.ask('loss') for side, s in sides.items()}
    ceiling = max(s.ask('ceiling') for s in sides.values() if s.kind != 'autocast')
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(pairs):
      for side, s in sides.items():
        rates[side].append(tokens / s.ask('time'))
    table = sides['gptjax'].ask('parts') if parts else {}
    flops = sides['gptjax'].ask('flops')
    for s in sides.values():
      s.close()
  for side, loss in first.items():
    wide = 1e-2 if side == 'autocast' else 1e-4
    assert abs(loss - first['gptjax']) < wide, f'{name}: first losses differ: {first}'
  mine = rates['gptjax']
  return dict(
    shape=name,
    loss=first['gptjax'],
    tokens_per_second={k: statistics.median(v) for k, v in rates.items()},
    ratio={
      k: statistics.median(m / t for m, t in zip(mine, v, strict=True))
      for k, v in rates.items()
      if k != 'gptjax'
    },
    gflops={k: statistics.median(v) * flops / 1e9 for k, v in rates.items()},
    ceiling_gflops=ceiling,
    seconds_of_parts=table,
    runs=rates,
  )


def work(kind: str, shape: Shape, weights: str) -> None:
  """The process of one side; slow imports are done before the first question."""
  if kind == 'gptjax':
    flags.huge_pages()
    import gptjax.step  # noqa: F401
  else:
    import transformers  # noqa: F401
  ours = kind == 'gptjax'

  def make() -> dict[str, Callable[[], Any]]:
    made = our_side(shape, weights) if ours else torch_side(kind, shape, weights)
    return {**made, 'time': lambda: seconds_of(made['loss'])}

  serve(make)


def make_batch(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
  """Random tokens and targets [B, T]."""
  draw = np.random.default_rng(0).integers(
    0, shape.vocab, (2, shape.rows, shape.length)
  )
  return draw[0].astype(np.int32), draw[1].astype(np.int32)


def our_side(shape: Shape, weights: str) -> dict[str, Callable[[], Any]]:
  """This project: the step that train.py runs."""
  import jax
  import jax.numpy as jnp

  from gptjax import step as steps
  from gptjax import tree
  from gptjax.models.transformer import transformer
  from gptjax.objectives.next_token import next_token
  from gptjax.optim.adamw import adamw

  model = transformer(
    preset='gpt2',
    layers=shape.layers,
    heads=shape.heads,
    embed=shape.embed,
    length=shape.length,
    vocab=shape.vocab,
    dropout=0.0,
    attention_dropout=0.0,
  )
  optimizer = adamw(lr=3e-4, steps=1000, decay='constant', axes=model.axes)
  state = steps.new_state(model.init(jax.random.key(0)), optimizer, jax.random.key(1))
  arrays: dict[str, Any] = jax.device_get(tree.layers(state.params))
  np.savez(weights, **arrays)
  tokens, targets = map(jnp.asarray, make_batch(shape))
  batch: dict[str, Any] = dict(
    tokens=tokens, targets=targets, weights=jnp.ones(tokens.shape)
  )
  train_step = steps.make_train_step(model, next_token(), optimizer)
  compiled = jax.jit(train_step, donate_argnums=0).lower(state, batch, {}).compile()

  def step() -> float:
    nonlocal state
    state, metrics = compiled(state, batch, {})
    loss = metrics['loss']
    return float(loss.total) / float(loss.count)

  def ceiling() -> float:
    x = jnp.ones((2048, 2048))
    product = jax.jit(lambda x: x @ x)
    return fastest_product(lambda: product(x).block_until_ready())

  tokens_per_step = shape.rows * shape.length
  return dict(
    loss=step,
    ceiling=ceiling,
    flops=lambda: 3 * model.flops((shape.rows, shape.length)) / tokens_per_step,
    parts=lambda: profile(compiled.as_text() or '', step),
  )


def fastest_product(product: Callable[[], Any]) -> float:
  """GFLOP/s of a product of 2048 x 2048 matrices, the best of ten."""
  product()
  times = []
  for _ in range(10):
    begin = time.perf_counter()
    product()
    times.append(time.perf_counter() - begin)
  return 2 * 2048**3 / min(times) / 1e9


# Of an operation's name, in order: the first that occurs says the part.
PARTS = {
  'loss': ('loss',),
  'scores': ('attend',),
  'norm': ('norm_attention', 'norm_mlp', 'Norm'),
  'attention products': ('attention',),
  'mlp': ('mlp',),
  'embedding': ('Embed',),
}


def profile(text: str, step: Callable[[], float]) -> dict[str, float]:
  """Seconds a step of each part's operations; two threads may work side by side."""
  import glob
  import gzip
  import re

  import jax

  names = dict(re.findall(r'%([\w.-]+) = .*?op_name="([^"]*)"', text))
  repeats = 3
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(repeats):
        step()
    (file,) = glob.glob(f'{folder}/**/*.trace.json.gz', recursive=True)
    with gzip.open(file) as f:
      events = json.load(f)['traceEvents']
  seconds: dict[str, float] = {}
  for event in events:
    op = event.get('args', {}).get('hlo_op')
    if event.get('ph') == 'X' and op:
      name = names.get(op, '')
      part = next(
        (p for p, words in PARTS.items() if any(w in name for w in words)),
        'optimizer and rest',
      )
      seconds[part] = seconds.get(part, 0) + event['dur'] / 1e6 / repeats
  return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def torch_side(kind: str, shape: Shape, weights: str) -> dict[str, Callable[[], Any]]:
  """GPT-2 of transformers, its optimizer and clipping those of PyTorch."""
  import torch
  from transformers import GPT2Config, GPT2LMHeadModel

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  config = GPT2Config(
    vocab_size=shape.vocab,
    n_positions=shape.length,
    n_embd=shape.embed,
    n_layer=shape.layers,
    n_head=shape.heads,
    resid_pdrop=0,
    embd_pdrop=0,
    attn_pdrop=0,
  )
  model = GPT2LMHeadModel(config)
  model.load_state_dict(torch_weights(shape, weights), strict=False)
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1
  )
  forward = torch.compile(model) if kind == 'compile' else model
  tokens, targets = (torch.from_numpy(x).long() for x in make_batch(shape))

  def step() -> float:
    with torch.autocast('cpu', torch.bfloat16, enabled=kind == 'autocast'):
      logits = forward(tokens, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
      logits.float().view(-1, shape.vocab), targets.view(-1)
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()

  x = torch.ones(2048, 2048)
  return dict(loss=step, ceiling=lambda: fastest_product(lambda: x @ x))


def torch_weights(shape: Shape, file: str) -> dict[str, Any]:
  """Our weights under the names and shapes of GPT2LMHeadModel."""
  import torch

  D = shape.embed
  ours = np.load(file)
  found = {
    'transformer.wte.weight': ours['embed/tokens'][: shape.vocab],
    'transformer.wpe.weight': ours['embed/positions'],
    'transformer.ln_f.weight': ours['norm/scale'],
    'transformer.ln_f.bias': ours['norm/bias'],
  }
  found['lm_head.weight'] = found['transformer.wte.weight']
  for i in range(shape.layers):
    get, to = (lambda n, i=i: ours[f'layers/{i}/{n}']), f'transformer.h.{i}'
    qkv = ('query', 'key', 'value')
    attention = [get(f'attention/{n}').reshape(D, D) for n in qkv]
    biases = [get(f'attention/{n}_bias').reshape(D) for n in qkv]
    found |= {
      f'{to}.attn.c_attn.weight': np.concatenate(attention, 1),
      f'{to}.attn.c_attn.bias': np.concatenate(biases),
      f'{to}.attn.c_proj.weight': get('attention/out').reshape(D, D),
      f'{to}.attn.c_proj.bias': get('attention/out_bias'),
      f'{to}.mlp.c_fc.weight': get('mlp/up'),
      f'{to}.mlp.c_fc.bias': get('mlp/up_bias'),
      f'{to}.mlp.c_proj.weight': get('mlp/down'),
      f'{to}.mlp.c_proj.bias': get('mlp/down_bias'),
    }
    for theirs, mine in (('ln_1', 'norm_attention'), ('ln_2', 'norm_mlp')):
      found[f'{to}.{theirs}.weight'] = get(f'{mine}/scale')
      found[f'{to}.{theirs}.bias'] = get(f'{mine}/bias')
  return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in found.items()}


def report(result: dict[str, Any], as_json: bool) -> None:
  """One shape, as a line of JSON or as a table."""
  if as_json:
    print(json.dumps(result), flush=True)
    return
  print(f'{result["shape"]}: ceiling {result["ceiling_gflops"]:.0f} GFLOP/s')
  for side, rate in result['tokens_per_second'].items():
    ratio = result['ratio'].get(side)
    note = '' if ratio is None else f'   gptjax is {ratio:.2f} x as fast'
    print(
      f'  {side:9} {rate:9,.0f} tokens/s {result["gflops"][side]:5.0f} GFLOP/s{note}'
    )
  for part, seconds in result['seconds_of_parts'].items():
    print(f'    {part:20} {seconds * 1e3:8.1f} ms')
  sys.stdout.flush()


if __name__ == '__main__':
  main()
