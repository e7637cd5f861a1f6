"""Classes of texts, by a head on the trunk: from nothing, or from a trained model.

  python -m gptjax.main --config=experiments/classify.py --data=FOLDER  # hatespeech
  python -m gptjax.main --config=experiments/classify.py:init=smollm2 --data=FOLDER
  python -m gptjax.main --config=experiments/classify.py:path=my.csv,text=a,label=b
  python -m gptjax.main --config=experiments/classify.py:quick --data=FOLDER

The classes are those that the file holds. `init` is a run folder, hf:X, gguf:FILE or
smollm2: adapters and a new head are trained, with `full` all of it. From nothing on
hatespeech, 2 CPU cores: a minute; macro F1 0.72 on the test split, accuracy 0.86.
"""

from experiments import common

HATESPEECH = dict(path='hatespeech', text='tweet', label='class')


def get_config(arg=''):
  a = common.parse(
    arg, **HATESPEECH, init='', length=128, rank=16, full=False, quick=False
  )
  c = common.config()
  c.steps = 1200
  c.batch_size = 8  # Rows per update, over all devices; each holds several texts.
  c.mixture = common.mixture(
    dict(
      texts=dict(
        name='classify',
        path=a.path,
        text=a.text,
        label=a.label,
        by='class',  # Each split has its share of every class.
        splits=dict(val=0.1, test=0.1),
        weight=1.0,
      )
    ),
    length=a.length,
  )
  c.objective = dict(
    name='classify',
    class_weights='balanced',  # '' where the loss is to follow the data.
    smoothing=0.0,
    neftune=0.0,
  )
  if a.init:
    c.init = a.init
    c.model = dict(name='transformer', outputs=('classes',), dropout=0.0)
    if not a.full:
      c.lora.update(rank=a.rank, alpha=2.0 * a.rank, dropout=0.05)
  else:
    c.tokenizer = dict(name='sentencepiece', vocab=4096)
    c.model = dict(
      name='transformer',
      preset='llama',
      layers=2,
      embed=128,
      heads=4,
      kv_heads=4,
      mlp=352,
      causal=False,  # Every token sees the whole text.
      outputs=('classes',),
      dropout=0.3,
    )
  c.optim = dict(
    name='adamw',
    lr=5e-4 if a.init and not a.full else 2e-5 if a.init else 1e-3,
    warmup=50,
    decay='cosine',
    weight_decay=0.1,
    clip=1.0,
  )
  c.evals = dict(
    val=dict(name='classify', task='texts', split='val', every=200),
    test=dict(name='classify', task='texts', split='test', every=0),  # At the end.
  )
  c.save_every = 200
  c.keep_best.update(metric='val/f1', mode='max')
  c.early_stop.update(metric='val/f1', mode='max', patience=3)
  if a.quick:
    c.steps = 4
    c.evals.val.limit = c.evals.test.limit = 64
  return c
