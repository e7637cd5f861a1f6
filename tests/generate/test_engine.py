"""Cached, ragged, shared and reused slots against the forward pass without a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import sharding
from gptjax.generate.engine import make_engine, plan, with_weights
from gptjax.generate.sampling import Settings
from gptjax.generate.schedule import Request, check, generate
from gptjax.models.transformer import transformer
from gptjax.words import Mistake

VOCAB = 97
SMALL = dict(vocab=VOCAB, layers=2, embed=32, heads=4, mlp=48, length=64)
FAMILIES = {
  'llama': dict(SMALL, kv_heads=2),
  'gpt2': dict(
    SMALL,
    positions='learned',
    norm='layer',
    norm_bias=True,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    gated=False,
    activation='gelu_tanh',
  ),
  'gpt_neo': dict(
    SMALL,
    positions='learned',
    norm='layer',
    norm_bias=True,
    pattern=('global', 'local'),
    window=5,
    gated=False,
  ),
  'gemma3': dict(
    SMALL,
    layers=3,
    kv_heads=1,
    pattern=('local', 'global'),
    window=7,
    qk_norm=True,
    norm_offset=True,
    post_norms=True,
    embed_scale=True,
    local_theta=1000.0,
    attention_softcap=20.0,
    final_softcap=10.0,
  ),
  'scanned': dict(SMALL, scan=True, tied=False),
}
GREEDY = Settings(temperature=0)


@functools.cache
def model_of(family):
  model = transformer(**FAMILIES[family])
  weights = model.init(jax.random.key(0))
  # Far from uniform, so that a wrong key or position changes the tokens.
  return model, jax.tree.map(lambda x: 4 * x if x.ndim > 2 else x, weights)


@functools.cache
def engine_of(family='llama', slots=3, length=64, chunk=16, rows=1):
  model, weights = model_of(family)
  return make_engine(model, weights, slots=slots, length=length, chunk=chunk, rows=rows)


@functools.cache
def full_of(family):
  model, weights = model_of(family)

  @jax.jit
  def full(tokens):
    hidden, _, _ = model.hidden(weights, {'tokens': tokens})
    return jax.nn.log_softmax(model.heads['lm'](weights, hidden))

  return full


def logprobs_of(family, ids):
  """Log-probabilities [T, V] without a cache, one shape for all lengths."""
  tokens = np.zeros((1, 64), np.int32)
  tokens[0, : len(ids)] = ids
  return np.asarray(full_of(family)(tokens))[0, : len(ids)]


def prompts_of(*lengths):
  draw = np.random.default_rng(1)
  return [draw.integers(0, VOCAB, n).tolist() for n in lengths]


def answers(engine, requests):
  """{(request, answer): events}."""
  found = {}
  for event in generate(engine, requests):
    found.setdefault((event.request, event.answer), []).append(event)
  return found


def ids_of(events):
  return [event.id for event in events]


@pytest.mark.parametrize('family', list(FAMILIES))
def test_greedy_tokens_equal_the_full_forward_pass(family):
  # Ragged, over more requests than slots, past chunks, windows and a slot's reuse.
  prompts = prompts_of(1, 7, 16, 17, 33, 40, 2)
  new = [20, 12, 9, 6, 14, 24, 5]
  requests = [Request(p, n, GREEDY) for p, n in zip(prompts, new, strict=True)]
  found = answers(engine_of(family), requests)
  assert list(sorted(found)) == [(i, 0) for i in range(len(prompts))]
  for i, prompt in enumerate(prompts):
    ids = ids_of(found[i, 0])
    assert len(ids) == new[i]
    want = logprobs_of(family, prompt + ids[:-1])[len(prompt) - 1 :]
    np.testing.assert_array_equal(ids, want.argmax(-1))
    got = [event.logprob for event in found[i, 0]]
    np.testing.assert_allclose(got, want.max(-1), atol=1e-4)
    reasons = [event.finish_reason for event in found[i, 0]]
    assert reasons == [None] * (new[i] - 1) + ['length']


def test_sampled_tokens_do_not_depend_on_companions():
  engine = engine_of()
  draw = np.random.default_rng(2)
  prompts = prompts_of(*draw.integers(1, 45, 12))
  requests = [
    Request(
      prompt,
      int(draw.integers(1, 16)),
      Settings(
        temperature=[0, 0.7, 1.3][i % 3],
        top_k=[0, 0, 20, 5][i % 4],
        top_p=[1.0, 0.9][i % 2],
        min_p=[0, 0.02][i % 2],
        repetition_penalty=[1.0, 1.2][i % 2],
        seed=i % 5,
      ),
    )
    for i, prompt in enumerate(prompts)
  ]
  together = answers(engine, requests)
  turned = answers(engine, requests[::-1])
  for i, request in enumerate(requests):
    alone = answers(engine, [request])[0, 0]
    assert [e[2:] for e in alone] == [e[2:] for e in together[i, 0]]
    assert [e[2:] for e in alone] == [e[2:] for e in turned[len(requests) - 1 - i, 0]]


def test_prompts_prefilled_together_equal_prompts_prefilled_alone():
  prompts = prompts_of(3, 9, 20, 1, 16, 30, 12)
  requests = [Request(p, 6, GREEDY) for p in prompts]
  one = answers(engine_of(), requests)
  many = answers(engine_of(slots=7, rows=3), requests)
  assert {k: ids_of(v) for k, v in one.items()} == {
    k: ids_of(v) for k, v in many.items()
  }


def test_answer_i_equals_the_answer_of_seed_plus_i():
  engine = engine_of()
  (prompt,) = prompts_of(11)
  found = answers(engine, [Request(prompt, 8, Settings(seed=7), n=5)])
  assert len(found) == 5
  texts = [ids_of(found[0, i]) for i in range(5)]
  assert len({tuple(ids) for ids in texts}) == 5
  for i, ids in enumerate(texts):
    alone = answers(engine, [Request(prompt, 8, Settings(seed=7 + i))])
    assert ids_of(alone[0, 0]) == ids


def test_a_stop_id_ends_the_answer_and_frees_the_slot():
  engine = engine_of(slots=1)
  prompts = prompts_of(5, 6, 7)
  plain = answers(engine, [Request(p, 10, GREEDY) for p in prompts])
  stops = [ids_of(plain[i, 0])[3] for i in range(3)]
  requests = [
    Request(p, 10, GREEDY, stop_ids=[stop, VOCAB - 1])
    for p, stop in zip(prompts, stops, strict=True)
  ]
  found = answers(engine, requests)
  for i, stop in enumerate(stops):
    whole = ids_of(plain[i, 0])
    assert ids_of(found[i, 0]) == whole[: whole.index(stop) + 1]
    assert found[i, 0][-1].finish_reason == 'stop'


def test_the_repetition_penalty_sees_prompt_and_answer():
  engine = engine_of()
  (prompt,) = prompts_of(30)
  settings = Settings(temperature=0, repetition_penalty=1e9)
  ids = ids_of(answers(engine, [Request(prompt, 20, settings)])[0, 0])
  # Scores above 0 become nothing and those below immense: nothing comes twice.
  assert len(set(ids)) == len(ids)
  assert not set(ids) & set(prompt)


def test_an_answer_ends_where_the_context_is_full():
  prompts = prompts_of(60, 63, 3)
  found = answers(engine_of(), [Request(p, None, GREEDY) for p in prompts])
  assert [len(found[i, 0]) for i in range(3)] == [4, 1, 61]
  assert {events[-1].finish_reason for events in found.values()} == {'length'}
  for i, prompt in enumerate(prompts):
    ids = ids_of(found[i, 0])
    want = logprobs_of('llama', prompt + ids[:-1])[len(prompt) - 1 :]
    np.testing.assert_array_equal(ids, want.argmax(-1))


def test_dropped_answers_leave_their_slots():
  engine = engine_of(slots=2)
  dropped = set()
  requests = [Request(p, 40, GREEDY) for p in prompts_of(4, 5, 6)]
  requests.append(Request(*prompts_of(7), 3, GREEDY))
  count = dict.fromkeys(range(4), 0)
  for event in generate(engine, requests, dropped):
    count[event.request] += 1
    if event.request < 3 and count[event.request] == 4:
      dropped.add((event.request, 0))
  assert count == {0: 4, 1: 4, 2: 4, 3: 3}


def test_requests_are_taken_as_slots_become_free():
  taken = []

  def requests():
    for i, prompt in enumerate(prompts_of(4, 4, 4, 4)):
      taken.append(i)
      yield Request(prompt, 3, GREEDY)

  events = generate(engine_of(slots=2), requests())
  next(events)
  assert taken == [0, 1]
  assert sum(1 for _ in events) == 4 * 3 - 1
  assert taken == [0, 1, 2, 3]


def test_other_weights_compile_nothing():
  _, weights = model_of('llama')
  engine = engine_of()
  request = Request(*prompts_of(9), 5, GREEDY)
  before = ids_of(answers(engine, [request])[0, 0])
  compiled = engine.step._cache_size(), engine.extend._cache_size()
  other = with_weights(engine, jax.tree.map(lambda x: x[::-1], weights))
  assert ids_of(answers(other, [request])[0, 0]) != before
  again = with_weights(other, weights)
  assert ids_of(answers(again, [request])[0, 0]) == before
  assert (engine.step._cache_size(), engine.extend._cache_size()) == compiled


@pytest.mark.slow
def test_a_mesh_changes_no_token():
  model, weights = model_of('llama')
  requests = [Request(p, 6, GREEDY) for p in prompts_of(3, 20, 9, 1, 14)]
  alone = answers(engine_of(), requests)
  mesh = sharding.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  with sharding.use(mesh):
    laid = jax.device_put(weights, sharding.layout(weights, model.axes))
    engine = make_engine(model, laid, slots=4, length=64, chunk=16)
    keys = engine.new_state().cache.keys
    assert not next(iter(keys.values()))[0].sharding.is_fully_replicated
    found = answers(engine, requests)
  assert {k: ids_of(v) for k, v in found.items()} == {
    k: ids_of(v) for k, v in alone.items()
  }


def test_bfloat16_is_near_float32():
  model, weights = model_of('llama')
  engine = make_engine(model, weights, slots=1, length=64, dtype=jnp.bfloat16)
  assert engine.weights['embed']['tokens'].dtype == jnp.bfloat16
  assert engine.weights['norm']['scale'].dtype == jnp.float32
  prompt = prompts_of(30)[0]
  event = next(generate(engine, [Request(prompt, 1, Settings(seed=1))]))
  want = logprobs_of('llama', prompt)[-1, event.id]
  assert abs(event.logprob - want) < 0.2


def test_the_plan_covers_the_prompt_and_fits_the_context():
  engine = engine_of()._replace(length=1000, chunk=256)
  for count in range(1000):
    sizes = plan(engine, count)
    assert sum(sizes[:-1]) < count or count == 0
    assert count <= sum(sizes) <= 1000
    assert all(size in (16, 32, 64, 128, 256) for size in sizes[:-1])
    assert sum(sizes) - count < max(16, count)


@pytest.mark.parametrize(
  ('request_', 'line'),
  [
    (Request([]), 'no tokens'),
    (Request([1] * 64), '64 tokens.* context of 64'),
    (Request([1, 128]), 'outside the vocabulary'),
    (Request([-1]), 'outside the vocabulary'),
    (Request([1], max_tokens=0), 'max_tokens=0'),
    (Request([1], n=0), 'n=0'),
    (Request([1], settings=Settings(top_p=2)), 'top_p=2'),
  ],
)
def test_requests_that_cannot_be_served_are_mistakes(request_, line):
  with pytest.raises(Mistake, match=line):
    check(engine_of(), request_)
  with pytest.raises(Mistake, match=line):
    list(generate(engine_of(), [request_]))


def test_a_model_that_writes_no_text_is_refused():
  model = transformer(
    vocab=64, layers=1, embed=8, heads=2, mlp=8, outputs=('classes',), classes=2
  )
  weights = model.init(jax.random.key(0))
  with pytest.raises(Mistake, match=r"a head 'lm' writes text: .*\['classes'\]"):
    make_engine(model, weights, slots=1, length=16)
