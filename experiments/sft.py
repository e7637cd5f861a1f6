"""Any model tuned on any conversations, by adapters or whole.

  python -m gptjax.main --config=experiments/sft.py --data=FOLDER     # customer service
  python -m gptjax.main --config=experiments/sft.py:path=my/chats.jsonl
  python -m gptjax.main --config=experiments/sft.py:init=hf:DIR,path=my/alpaca.json,full

The model is SmolLM2-135M-Instruct unless `init` names another: a run folder, hf:X or
gguf:FILE. The files are JSON lines of messages, ShareGPT or Alpaca; without any, it is
the set of schema-guided dialogues in the folder of data sets.
"""

from experiments import common


def get_config(arg=''):
  a = common.parse(
    arg, init='smollm2', path='', length=512, rank=16, full=False, quick=False
  )
  c = common.config()
  c.init = a.init
  c.steps = 150
  c.batch_size = 8  # Rows per update, over all devices.
  if a.path:
    task = dict(name='conversations', path=a.path, on_bad='error', weight=1.0)
  else:
    task = dict(name='service', weight=1.0)
  c.mixture = common.mixture(dict(chat=task), length=a.length)
  c.model = dict(  # The rest is that of c.init.
    name='transformer',
    dropout=0.0,
    remat='dots',  # What is no product is made again: a third of the memory.
  )
  c.lora.rank = 0 if a.full else a.rank
  c.lora.alpha = 2.0 * a.rank
  c.lora.dropout = 0.05
  c.optim = dict(
    name='adamw',
    lr=5e-5 if a.full else 1e-3,
    warmup=10,
    decay='cosine',
    weight_decay=0.0,
    clip=1.0,
  )
  c.evals = dict(
    val=dict(name='perplexity', task='chat', split='val', every=50, limit=200)
  )
  c.save_every = 50
  c.keep_best.metric = 'val/nats_per_token'
  c.early_stop = dict(metric='val/nats_per_token', mode='min', patience=3)
  c.samples = dict(
    prompts=('I want to find a restaurant for tonight.', 'What is my balance?'),
    max_tokens=48,
    temperature=0.0,
    every=50,
    chat=True,  # A user says the prompts.
  )
  if a.quick:
    c.steps, c.batch_size = 4, 2
    c.evals.val.limit = 20
  return c
