"""A small GPT on 12 MB of dialogue, from nothing.

  python -m gptjax.main --config=experiments/small.py               # 2 cores: 7 minutes
  python -m gptjax.main --config=experiments/small.py:text=my/*.txt # your own text
  python -m gptjax.main --config=experiments/small.py:quick         # under a minute

Validation: 1.61 bits per byte; xz -9 with the training text as prefix needs 2.09.
"""

from experiments import common


def get_config(arg=''):
  a = common.parse(
    arg, text='', document='file', by='hash', field='text', val='', quick=False
  )
  c = common.config()
  c.steps = 1200
  c.batch_size = 8  # Rows per update, over all devices.
  if a.text:
    task = dict(
      name='text',
      path=a.text,  # A file, a folder, a glob; several by commas.
      document=a.document,  # file, paragraph or line: what a document is.
      field=a.field,  # Of JSON lines and Parquet.
      by=a.by,  # Splits by hash of the document, or by position.
      val_path=a.val,  # A file of its own to validate on.
      on_bad='error',  # Or skip, and count.
    )
  else:
    task = dict(name='chitchat')
  c.mixture = dict(
    length=256, packing='best_fit', tasks=dict(text=dict(task, weight=1.0))
  )
  c.tokenizer = dict(name='sentencepiece', vocab=4096)
  c.model = dict(
    name='transformer',
    preset='llama',
    layers=4,
    embed=192,
    heads=3,
    kv_heads=3,
    mlp=512,
    qk_norm=True,
  )
  c.objective.z_loss = 1e-4
  c.optim = dict(
    name='muon',
    lr=0.015,
    adam_lr=0.01,  # Of the table and the norms.
    momentum=0.9,
    warmup=50,
    decay='wsd',
    cooldown=0.5,  # Share of the steps over which the rate falls to 0.
    weight_decay=0.1,
    clip=1.0,
  )
  c.evals = dict(
    val=dict(name='perplexity', task='text', split='val', every=500, limit=2000)
  )
  c.save_every = 100
  c.keep_best.metric = 'val/bits_per_byte'
  c.samples = dict(
    prompts=('Hi! How are you?', 'What do you like to do'),
    max_tokens=48,
    temperature=0.8,
    every=500,
  )
  if a.quick:
    c.steps = 30
  return c
