"""A translator from nothing: parallel files, a decoder only.

python -m gptjax.main --config=experiments/translate.py --data=FOLDER      # multi30k
python -m gptjax.main --config=translate:path=my/train.{}.txt,source=en,target=fr
python -m gptjax.main --config=experiments/translate.py:quick --data=FOLDER
"""

from experiments import common


def get_config(arg=''):
  a = common.parse(arg, path='multi30k', source='en', target='de', quick=False)
  c = common.config()
  c.steps = 2400
  c.batch_size = 32  # Rows per update, over all devices.
  tasks = dict(
    pairs=dict(
      name='translation',
      path=a.path,  # Both files, with {} where they say the language; or a set.
      source=a.source,
      target=a.target,
      instruction='',  # One pair of languages: nothing to be said.
      weight=1.0,
    )
  )
  c.mixture = common.mixture(tasks, length=128)
  c.mixture.roles.user = 0.1  # To predict the source a little makes a better encoder.
  c.tokenizer = dict(name='sentencepiece', vocab=6000)
  c.model = dict(
    name='transformer',
    preset='llama',
    layers=4,
    embed=256,
    heads=4,
    kv_heads=4,
    mlp=704,
    qk_norm=True,
    dropout=0.2,
  )
  c.objective.smoothing = 0.1  # Share of the target's probability, spread.
  c.optim = dict(
    name='muon',
    lr=0.015,
    adam_lr=0.01,  # Of the table and the norms.
    momentum=0.95,
    warmup=100,
    decay='wsd',
    cooldown=0.6,  # Share of the steps over which the rate falls to 0.
    weight_decay=0.1,
    clip=1.0,
  )
  c.evals = dict(val=dict(name='perplexity', task='pairs', split='val', every=300))
  c.save_every = 300
  c.keep_best.metric = 'val/nats_per_token'
  if a.quick:
    c.steps = 4
    c.batch_size = 8
  return c
