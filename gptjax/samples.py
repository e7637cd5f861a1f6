"""The samples of a run: the same prompts, answered at each evaluation."""

from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from gptjax.generate import engine, sampling, text
from gptjax.tokenizers import template
from gptjax.words import Mistake, Model, Params, Tokenizer

Sampler = Callable[[Params], str]  # Weights to Markdown.


def make_sampler(
  config: Mapping[str, Any], model: Model, tokenizer: Tokenizer, path: epath.Path
) -> Sampler | None:
  """What writes Markdown for `c.samples`: the same prompts and seeds each time.

  With chat=True a user says the prompts, and the assistant answers. `path` is the run's
  folder, for its template.

  Raises:
    Mistake: a setting out of range, or a prompt that does not fit a row.
  """
  c, length = config['samples'], config['mixture']['length']
  if not c['prompts'] or not c['every']:
    return None
  try:
    sampling.check(sampling.Settings(c['temperature'], seed=config['seed']))
  except Mistake as mistake:
    raise Mistake(f'c.samples: {mistake}') from None
  if c['max_tokens'] < 1:
    raise Mistake(f'c.samples.max_tokens={c["max_tokens"]}: at least 1.')
  if isinstance(c['prompts'], str) or not all(isinstance(p, str) for p in c['prompts']):
    raise Mistake(f'c.samples.prompts={c["prompts"]!r}: a tuple of texts is allowed.')
  form = template.load(path / 'tokenizer', tokenizer)
  asked = [text.said_by_user(p) if c.get('chat') else p for p in c['prompts']]
  for prompt, whole in zip(c['prompts'], asked, strict=True):
    size = len(text.ids_of(tokenizer, whole, form))
    if size >= length:
      raise Mistake(
        f'c.samples.prompts: {prompt[:40]!r} has {size} tokens; with a new one they '
        f'must fit the context (c.mixture.length={length}). c.samples.every=0 is none.'
      )
  machine = None

  def sample(weights: Params) -> str:
    nonlocal machine
    if machine is None:
      slots = min(8, len(c['prompts']))
      machine = engine.make_engine(model, weights, slots=slots, length=length)
    machine = engine.with_weights(machine, weights)
    results = text.generate_text(
      machine,
      tokenizer,
      asked,
      max_tokens=c['max_tokens'],
      temperature=c['temperature'],
      seed=config['seed'],
      template=form,
    )
    machine = machine._replace(weights={})  # The weights are not ours to keep.
    gap = '\n> ' if c.get('chat') else ''
    return '\n'.join(
      f'> {_quoted(prompt)}{gap}**{_quoted(r.text)}**\n'
      for prompt, r in zip(c['prompts'], results, strict=True)
    )

  return sample


def _quoted(part: str) -> str:
  return part.replace('\n', '\n> ')
