"""Filters against transformers and NumPy, frequencies against probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.generate import sampling
from gptjax.generate.sampling import Settings
from gptjax.words import Mistake

B, V = 6, 257


def rows(settings, n=B):
  return Settings(*(np.broadcast_to(x, n) for x in settings.arrays()))


def logits_of(seed, n=B, v=V, scale=3.0):
  return scale * np.random.default_rng(seed).standard_normal((n, v)).astype(np.float32)


def kept(logits, settings):
  return np.isfinite(jax.jit(sampling.keep)(logits, settings))


@pytest.mark.parametrize(
  'changes',
  [
    dict(top_k=1),
    dict(top_k=40),
    dict(top_k=10_000),
    dict(top_p=0.9),
    dict(top_p=0.01),
    dict(top_p=0.999),
    dict(min_p=0.05),
    dict(min_p=1.0),
    dict(temperature=0.7, top_k=50, top_p=0.8, min_p=0.02),
    dict(temperature=2.5, top_k=200, top_p=0.6, min_p=0.1),
  ],
)
def test_kept_sets_equal_transformers(changes):
  torch = pytest.importorskip('torch')
  process = pytest.importorskip('transformers.generation.logits_process')
  logits = logits_of(0)
  settings = Settings(**changes)
  steps = [process.TemperatureLogitsWarper(float(settings.temperature))]
  if settings.top_k:
    steps.append(process.TopKLogitsWarper(min(settings.top_k, V)))
  steps.append(process.TopPLogitsWarper(settings.top_p))
  steps.append(process.MinPLogitsWarper(settings.min_p))
  want = torch.tensor(logits)
  for step in steps:
    want = step(None, want)
  want = torch.softmax(want, -1).numpy()
  got = jax.nn.softmax(jax.jit(sampling.keep)(logits, rows(settings)))
  np.testing.assert_array_equal(got > 0, want > 0)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7)


def test_repetition_penalty_equals_transformers():
  torch = pytest.importorskip('torch')
  process = pytest.importorskip('transformers.generation.logits_process')
  logits = logits_of(1)
  ids = np.random.default_rng(2).integers(0, V, (B, 9))
  seen = np.zeros((B, V), bool)
  np.put_along_axis(seen, ids, True, axis=1)
  want = process.RepetitionPenaltyLogitsProcessor(1.3)(
    torch.tensor(ids), torch.tensor(logits)
  )
  got = sampling.penalize(logits, seen, np.full(B, 1.3, np.float32))
  np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)


def oracle(row, temperature, top_k, top_p, min_p):
  """The kept set of one row, by sorting in float64."""
  x = row.astype(np.float64) / temperature
  order = np.argsort(-x)
  if top_k:
    order = order[:top_k]
  p = np.exp(x[order] - x[order[0]])
  p /= p.sum()
  before = np.cumsum(p) - p
  order = order[before < top_p]
  order = order[np.exp(x[order] - x[order[0]]) >= min_p]
  return set(order.tolist())


def test_every_row_has_its_own_settings():
  logits = logits_of(3, v=1000)
  logits[:, 990:] = -np.inf  # The padding of the vocabulary.
  settings = Settings(
    temperature=np.float32([1, 0.5, 2, 1, 1, 3]),
    top_k=np.int32([0, 7, 0, 500, 999, 1000]),
    top_p=np.float32([1, 1, 0.5, 0.9, 0.99, 0.3]),
    min_p=np.float32([0.01, 0, 0, 0.001, 0, 0.2]),
    repetition_penalty=np.ones(B, np.float32),
    seed=np.arange(B, dtype=np.uint32),
  )
  got = kept(logits, settings)
  for b in range(B):
    want = oracle(
      logits[b],
      settings.temperature[b],
      settings.top_k[b],
      settings.top_p[b],
      settings.min_p[b],
    )
    assert set(np.flatnonzero(got[b]).tolist()) == want - set(range(990, 1000)), b


def test_ties_with_the_last_one_kept_are_kept():
  logits = np.float32([[3, 1, 1, 1, 0, -0.0, -1]])
  np.testing.assert_array_equal(
    kept(logits, rows(Settings(top_k=2), 1)), [[1, 1, 1, 1, 0, 0, 0]]
  )


def draws(logits, settings, count):
  """`count` draws from one row of logits: request seeds 0 to count - 1, token 0."""
  settings = rows(settings, count)._replace(seed=np.arange(count, dtype=np.uint32))
  seen = np.zeros((count, logits.shape[-1]), bool)
  many = np.broadcast_to(logits, (count, logits.shape[-1]))
  return jax.jit(sampling.sample)(many, seen, np.zeros(count, np.int32), settings)


@pytest.mark.parametrize(
  'changes', [{}, dict(temperature=0.6, top_k=9), dict(top_p=0.8, min_p=0.02)]
)
def test_frequencies_equal_the_probabilities(changes):
  logits = logits_of(4, n=1, v=24, scale=1.5)
  logits[:, 20:] = -np.inf
  count = 40_000
  settings = Settings(**changes)
  ids, _ = draws(logits, settings, count)
  p = np.asarray(jax.nn.softmax(sampling.keep(logits, rows(settings, 1)))[0], float)
  found = np.bincount(np.asarray(ids), minlength=24)
  assert found[p == 0].sum() == 0
  used = p > 0
  squares = ((found - count * p) ** 2)[used] / (count * p[used])
  degrees = used.sum() - 1
  assert squares.sum() < degrees + 4 * np.sqrt(2 * degrees)


def test_successive_tokens_of_a_request_are_independent():
  count = 20_000
  logits = np.zeros((count, 4), np.float32)
  settings = rows(Settings(seed=5), count)
  ids, _ = jax.jit(sampling.sample)(
    logits, np.zeros((count, 4), bool), np.arange(count, dtype=np.int32), settings
  )
  pairs = np.bincount(4 * np.asarray(ids[:-1]) + np.asarray(ids[1:]), minlength=16)
  expected = (count - 1) / 16
  assert ((pairs - expected) ** 2 / expected).sum() < 15 + 4 * np.sqrt(30)


def test_greedy_rows_take_the_likeliest_after_the_penalty():
  logits = np.float32([[2, 1.9, -1, 0], [2, 1.9, -1, 0]])
  seen = np.bool_([[1, 0, 0, 0], [0, 0, 0, 0]])
  settings = rows(Settings(temperature=0, repetition_penalty=1.5), 2)
  ids, logprobs = sampling.sample(logits, seen, np.zeros(2, np.int32), settings)
  np.testing.assert_array_equal(ids, [1, 0])
  want = jax.nn.log_softmax(jnp.asarray(logits))
  np.testing.assert_allclose(logprobs, [want[0, 1], want[1, 0]], rtol=1e-6)


def test_a_draw_depends_on_seed_and_number_alone():
  logits = logits_of(6)
  settings = Settings(
    temperature=np.float32([1, 0, 0.8, 1, 0, 2]),
    top_k=np.int32([0, 3, 5, 0, 0, 0]),
    top_p=np.float32([1, 1, 0.9, 0.7, 1, 1]),
    min_p=np.float32([0, 0.1, 0, 0, 0, 0.05]),
    repetition_penalty=np.float32([1, 1, 1.2, 1, 1, 1]),
    seed=np.uint32([3, 1, 3, 2**32 - 1, 0, 9]),
  )
  drawn = np.int32([0, 4, 4, 7, 1000, 2])
  seen = np.random.default_rng(0).random((B, V)) < 0.2
  together, together_logprobs = sampling.sample(logits, seen, drawn, settings)
  for b in range(B):
    cut = slice(b, b + 1)
    alone, logprobs = sampling.sample(
      logits[cut], seen[cut], drawn[cut], Settings(*(x[cut] for x in settings))
    )
    assert alone[0] == together[b]
    np.testing.assert_allclose(logprobs[0], together_logprobs[b], rtol=1e-5)
  order = np.array([4, 2, 0, 5, 3, 1])
  turned, _ = sampling.sample(
    logits[order], seen[order], drawn[order], Settings(*(x[order] for x in settings))
  )
  np.testing.assert_array_equal(turned, np.asarray(together)[order])


def test_the_padded_vocabulary_is_never_drawn():
  logits = np.full((1, 256), -np.inf, np.float32)
  logits[0, 100:103] = [0, -30, -60]
  for changes in ({}, dict(temperature=50.0), dict(top_k=200), dict(top_p=0.9999999)):
    ids, logprobs = draws(logits, Settings(**changes), 2000)
    assert set(np.asarray(ids).tolist()) <= {100, 101, 102}
    assert np.isfinite(logprobs).all()


def test_a_temperature_near_zero_is_greedy():
  logits = logits_of(7, n=1)
  ids, _ = draws(logits, Settings(temperature=1e-30), 50)
  assert set(np.asarray(ids).tolist()) == {int(logits.argmax())}


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('temperature', -0.1),
    ('temperature', float('nan')),
    ('temperature', float('inf')),
    ('top_k', -1),
    ('top_p', 0.0),
    ('top_p', 1.01),
    ('min_p', -0.01),
    ('min_p', 1.5),
    ('repetition_penalty', 0.0),
    ('seed', -1),
    ('seed', 2**32),
  ],
)
def test_settings_out_of_range_are_mistakes(name, value):
  with pytest.raises(Mistake, match=f'^{name}={value}: allowed'):
    sampling.check(Settings(**{name: value}))
