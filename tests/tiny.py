"""A run of seconds: bytes, two layers, dropout on, evaluation, saves and samples."""

import pathlib
import random

from experiments import common


def write_corpus(folder: pathlib.Path, documents: int = 400, seed: int = 0) -> str:
  """A text file of paragraphs of made words; its path."""
  draw = random.Random(seed)
  letters = 'etaoinshrdlu'
  words = [''.join(draw.choices(letters, k=draw.randint(1, 7))) for _ in range(99)]
  paragraphs = [
    ' '.join(draw.choices(words, k=draw.randint(3, 30))) for _ in range(documents)
  ]
  path = pathlib.Path(folder) / 'corpus.txt'
  path.write_text('\n\n'.join(paragraphs))
  return str(path)


def get_config(arg=''):
  a = common.parse(arg, text='', steps=24)
  c = common.config()
  c.steps = a.steps
  c.batch_size = 8
  c.tokenizer = dict(name='bytes')
  task = dict(name='text', path=a.text, document='paragraph', weight=1.0)
  c.mixture = dict(length=32, packing='best_fit', tasks=dict(words=task))
  c.model = dict(
    name='transformer',
    preset='llama',
    layers=2,
    embed=32,
    heads=2,
    kv_heads=1,
    mlp=64,
    dropout=0.1,
  )
  c.optim = dict(name='adamw', lr=1e-2, warmup=4, decay='cosine', clip=1.0)
  c.evals = dict(val=dict(name='perplexity', split='val', every=8))
  c.keep_best.metric = 'val/bits_per_byte'
  c.save_every = 5
  c.log_every = 2
  c.mesh = dict(data=-1, fsdp=1, tensor=1)
  c.samples = dict(prompts=('the',), max_tokens=4, temperature=1.0, every=16)
  return c
