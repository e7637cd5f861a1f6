"""Lion: the sign of an interpolated momentum; Chen et al. 2023, algorithm 2.

Its updates have size 1 everywhere: learning rates are 3 to 10 times below AdamW's, and
weight decays as many times above.
"""

from collections.abc import Mapping

import optax

from gptjax.optim._chain import SCALAR, Assemble, Rule, chain, check_decays
from gptjax.optim.schedules import make_schedule
from gptjax.words import Optimizer, Tree


def lion(
  *,
  lr: float,
  steps: int,
  axes: Tree,
  b1: float = 0.9,
  b2: float = 0.99,
  warmup: float = 0,
  decay: str = 'cosine',
  final: float = 0.0,
  cooldown: float = 0.2,
  weight_decay: float = 1.0,
  decays: Mapping[str, float] | None = None,
  rates: Mapping[str, float] | None = None,
  clip: float = 1.0,
  ema: float = 0.0,
  assemble: Assemble | None = None,
) -> Optimizer:
  """Lion. What it shares with others: `schedules.make_schedule`, `_chain.chain`."""
  return chain(
    _rule(b1, b2),
    make_schedule(
      lr, steps, warmup=warmup, decay=decay, final=final, cooldown=cooldown
    ),
    axes=axes,
    clip=clip,
    weight_decay=weight_decay,
    decays=decays,
    rates=rates,
    ema=ema,
    assemble=assemble,
  )


def _rule(b1: float, b2: float) -> Rule:
  check_decays(b1=b1, b2=b2)
  inner = optax.scale_by_lion(b1=b1, b2=b2)

  def axes(param_axes: Tree) -> optax.ScaleByLionState:
    return optax.ScaleByLionState(count=SCALAR, mu=param_axes)

  return Rule(inner.init, inner.update, axes)
