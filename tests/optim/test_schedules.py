"""Schedules against their closed forms, written again for one n."""

import math

import numpy as np
import pytest

from gptjax.optim import schedules
from gptjax.words import Mistake

LR, N, W = 3e-3, 200, 20


def expected(decay, n, final=0.0, cooldown=40):
  if n < W:
    return LR * (n + 1) / W
  p = (n - W) / (N - W)
  q = max(0.0, (n - (N - cooldown)) / cooldown)
  return (
    LR
    * {
      'constant': 1.0,
      'linear': 1 - (1 - final) * p,
      'cosine': final + (1 - final) * (1 + math.cos(math.pi * p)) / 2,
      'wsd': 1 - (1 - final) * q,
      'wsd_sqrt': 1 - (1 - final) * math.sqrt(q),
      'inverse_sqrt': math.sqrt(W / (n + 1)),
    }[decay]
  )


@pytest.mark.parametrize('decay', schedules.DECAYS)
@pytest.mark.parametrize('final', [0.0, 0.1])
@pytest.mark.parametrize('warmup', [W, W / N])
def test_the_closed_form(decay, final, warmup):
  schedule = schedules.make_schedule(LR, N, warmup=warmup, decay=decay, final=final)
  found = np.asarray(schedule(np.arange(N)))
  truth = [expected(decay, n, final) for n in range(N)]
  np.testing.assert_allclose(found, truth, rtol=2e-5, atol=1e-9)
  assert (found > 0).all(), 'no update is wasted on a rate of zero'
  assert found.max() == pytest.approx(LR)
  assert float(schedule(7)) == found[7]


@pytest.mark.parametrize('decay', schedules.DECAYS)
def test_a_trial_of_two_steps_may_have_a_long_warmup(decay):
  schedule = schedules.make_schedule(LR, 2, warmup=50, decay=decay)
  np.testing.assert_allclose(schedule(np.arange(2)), [LR / 50, 2 * LR / 50], rtol=1e-6)


@pytest.mark.parametrize(
  ('decay', 'warmup', 'first'),
  [
    ('constant', W, None),
    ('inverse_sqrt', W, None),
    ('constant', 0.1, 1),  # The warm-up is a share of the steps.
    ('wsd', W, 162),  # Step 161 stands at the top of the old cool-down.
    ('wsd_sqrt', W, 162),
    ('linear', W, W + 2),
    ('cosine', W, W + 2),
  ],
)
def test_the_first_step_whose_rate_differs(decay, warmup, first):
  old, new = (
    schedules.make_schedule(LR, steps, warmup=warmup, decay=decay) for steps in (N, 300)
  )
  found = schedules.first_difference(
    lambda step: old(step - 1), lambda step: new(step - 1), 300
  )
  assert found == first


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(decay='cosin'), r"c.optim.decay='cosin'.*did you mean 'cosine'"),
    (dict(warmup=-1), r'c.optim.warmup=-1'),
    (dict(warmup=1.5), r'c.optim.warmup=1.5'),
    (dict(cooldown=-0.1), r'c.optim.cooldown=-0.1'),
    (dict(final=2.0), r'c.optim.final=2.0'),
    (dict(lr=-1.0), r'c.optim.lr=-1.0'),
    (dict(lr=float('nan')), r'c.optim.lr=nan'),
    (dict(steps=0), r'c.steps=0'),
  ],
)
def test_mistakes(options, message):
  with pytest.raises(Mistake, match=message):
    schedules.make_schedule(**{'lr': LR, 'steps': N, **options})
