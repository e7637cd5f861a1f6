"""From logits to the next token, each row by its own settings.

The order is that of transformers: repetition penalty (Keskar et al. 2019, CTRL), then
temperature, top-k (Fan et al. 2018), top-p (Holtzman et al. 2020), min-p (Nguyen et al.
2024), each over what the one before has left. Tokens that tie with the last one kept
are kept.

Nothing is sorted: a threshold is found bit by bit, 32 sums over the vocabulary in place
of a sort, which is 25 times slower on a CPU and no friend of a TPU either.

B rows of the batch, V vocabulary with its padding, whose logits are -inf.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.words import Array, Mistake


class Settings(NamedTuple):
  """How each row draws: arrays [B], or numbers for one row."""

  temperature: Any = 1.0  # 0: the likeliest token.
  top_k: Any = 0  # 0: off.
  top_p: Any = 1.0  # 1: off.
  min_p: Any = 0.0  # Of the likeliest token's probability; 0: off.
  repetition_penalty: Any = 1.0  # 1: off.
  seed: Any = 0

  def arrays(self) -> 'Settings':
    """The fields as NumPy arrays of the dtypes that `sample` wants."""
    kinds = (np.float32, np.int32, np.float32, np.float32, np.float32, np.uint32)
    return Settings(*(np.asarray(x, k) for x, k in zip(self, kinds, strict=True)))


def check(settings: Settings) -> Settings:
  """The settings of one row, if all are in range.

  Raises:
    Mistake: one is not, with its name, its value and what is allowed.
  """
  s = settings
  for name, right, allowed in (
    ('temperature', 0 <= s.temperature < float('inf'), 'at least 0 (0: greedy)'),
    ('top_k', 0 <= s.top_k < 2**31, 'at least 0 (0: off)'),
    ('top_p', 0 < s.top_p <= 1, 'above 0 and at most 1 (1: off)'),
    ('min_p', 0 <= s.min_p <= 1, 'from 0 (off) to 1'),
    (
      'repetition_penalty',
      0 < s.repetition_penalty < float('inf'),
      'above 0 (1: off)',
    ),
    ('seed', 0 <= s.seed < 2**32, 'from 0 to 4294967295'),
  ):
    if not right:
      raise Mistake(f'{name}={getattr(s, name)}: allowed is {allowed}.')
  return settings


def sample(
  logits: Array, seen: Array, drawn: Array, settings: Settings
) -> tuple[jax.Array, jax.Array]:
  """The next token of each row and its log-probability.

  Token number n of a request is a function of its logits and of fold_in(key(seed), n)
  alone, whoever shares the batch.

  Args:
    logits: [B, V] float32.
    seen: [B, V] bool, tokens of the prompt and of the answer so far.
    drawn: [B] int32, n: tokens drawn before.
    settings: arrays [B].

  Returns:
    ids [B] int32 and their log-probabilities [B] in nats under the model itself:
    before penalty, temperature and filters.
  """
  logprobs = jax.nn.log_softmax(logits, axis=-1)
  logits = penalize(logits, seen, settings.repetition_penalty)
  greedy = jnp.argmax(logits, axis=-1)  # [B]
  warm = settings.temperature > 0
  ids = jax.lax.cond(
    jnp.any(warm),
    lambda: jnp.where(warm, draw(keep(logits, settings), settings.seed, drawn), greedy),
    lambda: greedy,
  )
  chosen = jnp.take_along_axis(logprobs, ids[:, None], axis=-1)[:, 0]
  return ids.astype(jnp.int32), chosen


def penalize(logits: Array, seen: Array, penalty: Array) -> Array:
  """Makes tokens of `seen` less likely by the factor [B]: [B, V]."""
  by = penalty[:, None]
  return jnp.where(seen, jnp.where(logits < 0, logits * by, logits / by), logits)


def keep(logits: Array, settings: Settings) -> Array:
  """Logits [B, V] over temperature, -inf where a filter takes the token out."""
  # The likeliest token becomes 0, so that no temperature makes it infinite.
  logits = logits - jnp.max(logits, axis=-1, keepdims=True)
  warm = settings.temperature > 0
  heat = jnp.where(warm, jnp.maximum(settings.temperature, 1e-6), 1.0)
  logits = logits / heat[:, None]
  off = {'k': settings.top_k <= 0, 'p': settings.top_p >= 1}

  def top_k(x: Array) -> Array:
    weights = jnp.ones_like(x)  # Counts to 2^24 are exact in float32.
    return _upper(x, weights, settings.top_k.astype(jnp.float32), off['k'])

  def top_p(x: Array) -> Array:
    return _upper(x, jax.nn.softmax(x, axis=-1), settings.top_p, off['p'])

  logits = jax.lax.cond(jnp.all(off['k']), lambda x: x, top_k, logits)
  logits = jax.lax.cond(jnp.all(off['p']), lambda x: x, top_p, logits)
  floor = jnp.log(settings.min_p)[:, None]  # The likeliest is at 0; log(0): off.
  return jnp.where(logits < floor, -jnp.inf, logits)


def _upper(x: Array, weights: Array, target: Array, off: Array) -> Array:
  """The fewest largest x [B, V] whose weights reach target [B]; the others -inf."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  top = jnp.uint32(1 << 31)
  order = jnp.where(bits >= top, ~bits, bits | top)  # Ascends as x does.

  def halve(i: Array, least: Array) -> Array:
    trial = least | (top >> i.astype(jnp.uint32))  # [B]
    above = jnp.sum(jnp.where(order >= trial[:, None], weights, 0), axis=-1)
    return jnp.where(above >= target, trial, least)

  least = jax.lax.fori_loop(0, 32, halve, jnp.zeros(x.shape[:1], jnp.uint32))
  return jnp.where((order >= least[:, None]) | off[:, None], x, -jnp.inf)


def draw(logits: Array, seeds: Array, drawn: Array) -> Array:
  """One token a row from softmax(logits [B, V]), by fold_in(key(seed), drawn): [B].

  By the inverse of the distribution function: one random number a row, where the
  Gumbel form wants one for every token of the vocabulary.
  """

  def uniform(seed: Array, n: Array) -> Array:
    key = jax.random.key(seed, impl='threefry2x32')
    return jax.random.uniform(jax.random.fold_in(key, n))

  probabilities = jax.nn.softmax(logits, axis=-1)
  sums = jnp.cumsum(probabilities, axis=-1)
  passed = sums > jax.vmap(uniform)(seeds, drawn)[:, None] * sums[:, -1:]
  # Rounding makes sums that are not quite ascending, so a token that was filtered out
  # could pass first; and if none does, the likeliest is drawn.
  passed &= probabilities > 0
  return jnp.argmax(jnp.where(passed, 2.0, probabilities), axis=-1)
