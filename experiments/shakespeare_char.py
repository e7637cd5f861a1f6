"""Characters of Shakespeare: 1.1 MB, the first 90 % to train, the last 10 % to judge.

  python -m gptjax.main --config=experiments/shakespeare_char.py --data=FOLDER
  python -m gptjax.main --config=experiments/shakespeare_char.py:path=any.txt
  python -m gptjax.main --config=experiments/shakespeare_char.py:fast --data=FOLDER

Validation, 2 CPU cores, importing and compiling included: 1.67 nats per character in 54
seconds; `fast` 1.86 in 18.
"""

from experiments import common


def get_config(arg=''):
  a = common.parse(arg, path='tinyshakespeare', fast=False)
  c = common.config()
  c.steps = 260 if a.fast else 800
  c.batch_size = 16  # Rows per update, over all devices.
  c.tokenizer = dict(name='chars')
  task = dict(
    name='text', path=a.path, by='position', splits=dict(val=0.1, test=0.0), weight=1.0
  )
  c.mixture = dict(length=64, packing='concat', tasks=dict(text=task))
  c.model = dict(
    name='transformer',
    preset='llama',
    layers=2 if a.fast else 3,
    embed=128,
    heads=4,
    kv_heads=4,
    mlp=512,
    activation='relu2',
    gated=False,
    qk_norm=True,
  )
  c.optim = dict(
    name='muon',
    lr=0.015,
    adam_lr=0.01,  # Of the table, the head and the norms.
    momentum=0.9,
    warmup=20,
    decay='linear',
    weight_decay=0.0,
    clip=1.0,
  )
  c.evals = dict(val=dict(name='perplexity', split='val', every=400))
  c.save_every = 500
  return c
