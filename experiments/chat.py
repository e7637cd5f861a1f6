"""From a text model to one that answers: the run of small.py, tuned on conversations.

  python -m gptjax.main --config=experiments/small.py        # first
  python -m gptjax.main --config=experiments/chat.py
  python -m gptjax.main --config=experiments/chat.py:init=runs/mine,path=my/chats.jsonl

Only what the assistant says is trained on. Try it:

  python -m gptjax.generate --run=runs/chat --chat --prompt='Hi! How are you?'
"""

from experiments import common


def get_config(arg=''):
  a = common.parse(arg, init='runs/small', path='', quick=False)
  c = common.config()
  c.init = a.init
  c.steps = 600
  c.batch_size = 8  # Rows per update, over all devices.
  if a.path:
    task = dict(name='conversations', path=a.path, on_bad='error', weight=1.0)
  else:
    task = dict(name='chitchat', form='conversation', weight=1.0)
  c.mixture = common.mixture(dict(chat=task), length=256)
  c.model = dict(name='transformer', dropout=0.1)  # The rest is that of c.init.
  c.optim = dict(
    name='adamw', lr=3e-4, warmup=50, decay='cosine', weight_decay=0.1, clip=1.0
  )
  c.evals = dict(val=dict(name='perplexity', task='chat', split='val', every=100))
  c.save_every = 100
  c.keep_best.metric = 'val/nats_per_token'
  c.early_stop = dict(metric='val/nats_per_token', mode='min', patience=3)
  c.samples = dict(
    prompts=('Hi! How are you?', 'What do you like to do?'),
    max_tokens=48,
    temperature=0.8,
    every=200,
    chat=True,  # A user says the prompts.
  )
  if a.quick:
    c.steps = 4
  return c
