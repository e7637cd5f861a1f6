"""AdamW: Kingma, Ba 2015, algorithm 1; decoupled decay of Loshchilov, Hutter 2019."""

from collections.abc import Mapping

import optax

from gptjax.optim._chain import SCALAR, Assemble, Rule, chain, check_decays
from gptjax.optim.schedules import make_schedule
from gptjax.words import Optimizer, Tree


def adamw(
  *,
  lr: float,
  steps: int,
  axes: Tree,
  b1: float = 0.9,
  b2: float = 0.95,
  eps: float = 1e-8,
  warmup: float = 0,
  decay: str = 'cosine',
  final: float = 0.0,
  cooldown: float = 0.2,
  weight_decay: float = 0.1,
  decays: Mapping[str, float] | None = None,
  rates: Mapping[str, float] | None = None,
  clip: float = 1.0,
  ema: float = 0.0,
  assemble: Assemble | None = None,
) -> Optimizer:
  """AdamW. What it shares with others: `schedules.make_schedule`, `_chain.chain`."""
  return chain(
    adam_rule(b1, b2, eps),
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


def adam_rule(b1: float, b2: float, eps: float) -> Rule:
  """Mean over root mean square of the gradients, both corrected for their start."""
  check_decays(b1=b1, b2=b2)
  adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

  def axes(param_axes: Tree) -> optax.ScaleByAdamState:
    return optax.ScaleByAdamState(count=SCALAR, mu=param_axes, nu=param_axes)

  return Rule(adam.init, adam.update, axes)
