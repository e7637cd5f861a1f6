"""GPT-2 from nothing: 124M by default, on text at scale.

  python -m gptjax.main --config=experiments/gpt2.py:text=corpus/*.jsonl.gz
  python -m gptjax.main --config=experiments/gpt2.py:text=tfds:my_text,size=xl
  python -m gptjax.main --config=experiments/gpt2.py:text=hf:NAME,bpe=FOLDER

Half a million tokens an update, as in the paper. `bpe` is a folder with GPT-2's own
vocabulary and merges, or a tokenizer.json; without it a sentencepiece model of the same
size is trained on the text.
"""

from experiments import common

PRESETS = dict(small='gpt2', medium='gpt2-medium', large='gpt2-large', xl='gpt2-xl')
RATES = dict(small=6e-4, medium=3e-4, large=2.5e-4, xl=2e-4)  # Brown et al. 2020.


def get_config(arg=''):
  a = common.parse(arg, text='', field='text', size='small', bpe='', tiny=False)
  if a.size not in PRESETS:
    raise ValueError(f'size={a.size}: allowed are {", ".join(PRESETS)}.')
  c = common.config()
  c.steps = 20_000
  c.batch_size = 512  # Rows of 1,024 tokens per update, over all devices.
  c.microbatches = 1  # Cuts the batch to save memory; changes no number.
  if a.text:
    task = dict(name='text', path=a.text, field=a.field, weight=1.0)
  else:
    task = dict(name='chitchat', weight=1.0)  # To try it out: far too little text.
  c.mixture = dict(length=1024, packing='best_fit', tasks=dict(text=task))
  if a.bpe:
    c.tokenizer = dict(name='hf', file=a.bpe)
  else:
    c.tokenizer = dict(name='sentencepiece', vocab=50_000)
  c.model = dict(
    name='transformer',
    preset=PRESETS[a.size],
    length=1024,
    dropout=0.0,
    remat='none',  # 'dots' or 'full' trade time for memory.
  )
  c.optim = dict(
    name='adamw',
    lr=RATES[a.size],
    b2=0.95,
    warmup=700,
    decay='cosine',
    final=0.1,  # Share of the rate that is left at the end.
    weight_decay=0.1,
    clip=1.0,
  )
  c.mesh = dict(data=1, fsdp=-1, tensor=1)  # -1: all remaining devices.
  c.evals = dict(val=dict(name='perplexity', split='val', every=500, limit=2000))
  c.save_every, c.log_every = 500, 10
  c.keep_best.metric = 'val/bits_per_byte'
  if a.tiny:  # The same code at a size for a test.
    c.steps, c.batch_size, c.mixture.length = 2, 8, 64
    c.tokenizer.vocab = 512
    c.model.update(layers=2, embed=32, heads=2, mlp=64, length=64)
    c.evals.val.limit = 100
  return c
