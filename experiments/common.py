"""What experiments share: arguments after the colon, and the keys few of them set."""

import difflib

import ml_collections
from ml_collections import config_dict


def parse(arg, **defaults):
  """'text=my/*.txt,quick' -> a namespace like `defaults`; a bare name is True.

  A value runs to the next ',name=' or ',name' of the defaults, so that it may hold
  commas itself.
  """
  values = config_dict.ConfigDict(defaults)
  last = None
  for part in (arg or '').split(','):
    name, equals, value = part.partition('=')
    if name in defaults and (equals or isinstance(defaults[name], bool)):
      values[name] = _convert(name, value if equals else 'true', defaults[name])
      last = name
    elif last is not None and isinstance(defaults[last], str):
      values[last] = f'{values[last]},{part}'
    elif part:
      close = difflib.get_close_matches(name, defaults, n=1, cutoff=0.5)
      hint = f'did you mean {close[0]!r}? ' if close else ''
      raise ValueError(f'no argument {part!r}: {hint}Allowed: {", ".join(defaults)}.')
  return values


def _convert(name, text, default):
  if not isinstance(default, bool):
    try:
      return type(default)(text)
    except ValueError:
      kind = type(default).__name__
      raise ValueError(f'{name}={text}: not of type {kind}.') from None
  if text.lower() not in ('true', 'false', '1', '0'):
    raise ValueError(f'{name}={text}: true or false.')
  return text.lower() in ('true', '1')


def config():
  """The keys that most experiments leave as they are, each with its unit."""
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.microbatches = 1  # Cuts the batch to save memory; changes no number.
  c.objective = dict(name='next_token', z_loss=0.0, smoothing=0.0, neftune=0.0)
  c.tokenizer = config_dict.ConfigDict()  # Of c.init, whose model it belongs to.
  c.mesh = dict(data=-1, fsdp=1, tensor=1)  # -1: all remaining devices.
  c.rules = config_dict.ConfigDict()  # Logical axis -> mesh axes, where not the usual.
  c.log_every = 10  # Steps between lines of metrics.jsonl.
  c.save_every = 200  # Steps.
  c.keep = 2  # Newest checkpoints that stay.
  c.keep_best = dict(metric='', mode='min', n=1)  # '': none is kept as the best.
  c.early_stop = dict(
    metric='', mode='min', patience=5
  )  # Evaluations without progress.
  c.max_bad_steps = 20  # Updates skipped in a row (non-finite) that end the run.
  c.samples = dict(
    prompts=(), max_tokens=64, temperature=0.8, every=0, chat=False
  )  # chat: a user says the prompts.
  c.profile = dict(start=0, steps=0)  # Steps traced into the run folder; 0: none.
  c.track = ''  # '', wandb or trackio.
  c.compile_cache = True  # In the user's cache folder.
  c.data = config_dict.placeholder(str)  # Folder of data sets.
  c.resume = config_dict.placeholder(str)  # Another run's state and data position.
  c.init = config_dict.placeholder(str)  # A run's weights only (fine-tuning).
  c.lora = dict(  # Adapters over the weights of c.init.
    rank=0,  # 0: none, all is trained.
    alpha=16.0,  # Adapters count alpha / rank times.
    dropout=0.0,  # Share of an adapter's input.
    targets=('layers/*',),  # Patterns of products inside the layers.
    also=(),  # Patterns of leaves that are trained whole beside the adapters.
  )
  c.freeze = ()  # Patterns of leaves of c.init that stay as they are.
  return c


def mixture(tasks, length):
  """A mixture of conversations or labels, with every key that it may have."""
  return dict(
    length=length,  # Tokens of a row; longer conversations are cut after an answer.
    packing='best_fit',
    # Weights in the loss; a turn of its own weight multiplies it.
    roles=dict(system=0.0, user=0.0, assistant=1.0, tool=0.0),
    temperature=1.0,  # Above 1, small tasks are seen more often than their share.
    tasks=tasks,
  )


def evals_of(tasks, **settings):
  """An evaluation of each task: val_chat reads the validation split of task chat."""
  return {f'val_{name}': dict(settings, task=name, split='val') for name in tasks}


def layer_rates(layers, factor):
  """Rates of c.optim that fall by a factor with each layer below the last.

  The lower a layer, the less it moves; the table of tokens moves least.
  """
  rates = {f'layers/{n}/*': factor ** (layers - 1 - n) for n in range(layers)}
  return rates | {'embed/*': factor**layers}
