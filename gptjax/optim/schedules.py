"""Learning rates over a run.

Letters: n updates done before this one (0 is the first), W warm-up, N steps of the run,
C cool-down, f final fraction. Every schedule is `lr` times

  (n + 1) / W                                for n < W, then
  constant      1
  linear        1 - (1 - f) p
  cosine        f + (1 - f) (1 + cos(pi p)) / 2          Loshchilov, Hutter 2017, eq. 5
  wsd           1, then 1 - (1 - f) q                    Hu et al. 2024 (MiniCPM), 4.2
  wsd_sqrt      1, then 1 - (1 - f) sqrt(q)              Hagele et al. 2024, eq. 2
  inverse_sqrt  sqrt(W / (n + 1)), W at least 1          Vaswani et al. 2017, eq. 3

with p = (n - W) / (N - W) and q = (n - (N - C)) / C, both cut to [0, 1]. No update is
made at 0: the first has lr / W, and the last stands one step before p = q = 1.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from gptjax.lookup import nearest
from gptjax.words import Array, Mistake

DECAYS = ('constant', 'linear', 'cosine', 'wsd', 'wsd_sqrt', 'inverse_sqrt')
Schedule = Callable[[Array], Array]


def make_schedule(
  lr: float,
  steps: int,
  *,
  warmup: float = 0,
  decay: str = 'cosine',
  final: float = 0.0,
  cooldown: float = 0.2,
) -> Schedule:
  """The learning rate as a function of n, the updates done before (an array, or many).

  Args:
    lr: the highest rate.
    steps: of the whole run.
    warmup: steps (an int), or a share of `steps` (a float below 1).
    decay: one of DECAYS.
    final: fraction of `lr` that a decay ends at.
    cooldown: of wsd and wsd_sqrt: the last steps, or share of `steps`, that decay.

  Raises:
    Mistake: an unknown decay, or a number outside its range.
  """
  if decay not in DECAYS:
    raise Mistake(f'c.optim.decay={decay!r} is unknown: {nearest(decay, DECAYS)}')
  if steps < 1:
    raise Mistake(f'c.steps={steps}: a run has at least 1 step.')
  if not 0 <= lr < math.inf:
    raise Mistake(f'c.optim.lr={lr}: a learning rate is at least 0, and finite.')
  if not 0 <= final <= 1:
    raise Mistake(f'c.optim.final={final} is a fraction of lr: 0 to 1.')
  W = _in_steps('warmup', warmup, steps)
  C = _in_steps('cooldown', cooldown, steps)
  start, length = (steps - C, C) if decay.startswith('wsd') else (W, steps - W)

  def schedule(n: Array) -> Array:
    n = jnp.asarray(n, jnp.float32)
    # A warm-up may fill the run (a trial of few steps): then nothing is left to decay.
    p = jnp.clip((n - start) / max(length, 1), 0.0, 1.0)
    factor = jnp.ones_like(n)
    if decay in ('linear', 'wsd'):
      factor = 1.0 - (1.0 - final) * p
    elif decay == 'wsd_sqrt':
      factor = 1.0 - (1.0 - final) * jnp.sqrt(p)
    elif decay == 'cosine':
      factor = final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * p))
    elif decay == 'inverse_sqrt':
      factor = jnp.sqrt(max(W, 1) / jnp.maximum(n + 1.0, max(W, 1)))
    return lr * jnp.where(n < W, (n + 1.0) / max(W, 1), factor)

  return schedule


def _in_steps(key: str, value: float, steps: int) -> int:
  """Steps, from steps or a share of them."""
  share = isinstance(value, float) and value < 1
  if value < 0 or not (share or float(value).is_integer()):
    raise Mistake(
      f'c.optim.{key}={value}: a whole number of steps, or a share of them below 1.'
    )
  return round(value * steps) if share else int(value)


def first_difference(a: Schedule, b: Schedule, steps: int) -> int | None:
  """The first step of 1 to `steps` whose rate differs between two `Optimizer.rate`s.

  None: there is none, as where a schedule does not depend on a changed `c.steps`.
  """
  n = np.arange(1, steps + 1)
  differs = np.asarray(a(n)) != np.asarray(b(n))
  return int(n[differs.argmax()]) if differs.any() else None
