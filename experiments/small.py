"""A small GPT on 12 MB of dialogue, from nothing.

python -m gptjax.main --config=experiments/small.py                    # 2 CPU cores
python -m gptjax.main --config=experiments/small.py:text=my/*.txt     # your own text
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
    embed=256,
    heads=4,
    kv_heads=2,
    mlp=704,
  )
  c.objective.z_loss = 1e-4
  c.optim = dict(
    name='muon',
    lr=0.02,
    adam_lr=3e-3,
    warmup=50,
    decay='wsd',
    weight_decay=0.1,
    clip=1.0,
  )
  c.evals = dict(
    val=dict(name='perplexity', task='text', split='val', every=200, limit=2000)
  )
  c.keep_best.metric = 'val/bits_per_byte'
  c.samples = dict(
    prompts=('Hi! How are you?', 'What do you like to do'),
    max_tokens=48,
    temperature=0.8,
    every=200,
  )
  if a.quick:
    c.steps = 30
  return c
