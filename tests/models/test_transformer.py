"""The transformer against exact properties, over its families and forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import sharding
from gptjax.models.dropout import dropout
from gptjax.models.layers import unstack_layers
from gptjax.models.transformer import transformer
from gptjax.words import Mistake

SIZES = dict(vocab=70, layers=2, embed=16, heads=4, kv_heads=2, mlp=24, length=24)
FAMILIES = {
  'gpt': {},
  'neo': dict(window=3),
  'llama': dict(rope=dict(kind='ntk', factor=2.0)),
  'mistral': dict(window=3),
  'qwen3': dict(head=6),
  'gemma2': dict(window=3, layers=3),
  'gemma3': dict(window=3, layers=3, pattern=('local', 'global')),
}


def make(preset='llama', **settings):
  return transformer(preset=preset, **{**SIZES, **settings})


@functools.cache
def made(preset):
  """A model of the family, its weights well away from their first values."""
  model = make(preset, **FAMILIES[preset])
  params = model.init(jax.random.key(0))
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noise = [
    0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
  ]
  moved = [x + n for x, n in zip(leaves, noise, strict=True)]
  return model, jax.tree.unflatten(structure, moved)


def some_tokens(*shape, seed=2):
  return jax.random.randint(jax.random.key(seed), shape, 0, 70)


def close(a, b, atol=2e-5):
  np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol, rtol=1e-5)


def near(a, b, atol=2e-5):
  """Gradients: they reach 1000, and round in the scale of the largest."""
  close(a, b, atol=atol + 1e-6 * np.abs(b).max())


def hidden(model, params, batch, **options):
  """Jitted: hidden states and the cache."""
  run = jax.jit(lambda p, b, o: model.hidden(p, b, **o)[:2])
  return run(params, batch, options)


def reach(model, params, T, t):
  """Which of T tokens token t depends on after the last layer, by gradients: [T]."""
  D = params['embed']['tokens'].shape[1]
  x = jax.random.normal(jax.random.key(3), (1, T, D))

  def state(x):
    # As a prefix: embeddings have a gradient, ids have none.
    batch = {'tokens': some_tokens(1, 1), 'prefix': x}
    aux = model.hidden(params, batch, watch=('residual',))[2]
    return jnp.sum(jnp.sin(aux['watch']['residual'][-1, 0, t]))

  return np.abs(np.asarray(jax.jit(jax.grad(state))(x)))[0].max(-1) > 0


@pytest.mark.parametrize('preset', ['gpt', 'gemma2'])
def test_no_token_sees_a_later_one(preset):
  model, params = made(preset)
  seen = reach(model, params, T=9, t=5)
  assert seen[:6].all()
  assert not seen[6:].any()


def test_windows_reach_as_far_as_their_layers():
  model, params = made('mistral')  # Two layers of window 3: four tokens back.
  assert list(np.flatnonzero(reach(model, params, T=9, t=7))) == [3, 4, 5, 6, 7]


def test_bidirectional_sees_both_ways():
  model = make(causal=False, positions='sinusoidal')
  assert reach(model, model.init(jax.random.key(0)), T=6, t=2).all()


@pytest.mark.parametrize('preset', ['gpt', 'gemma3'])
def test_packed_documents_are_as_if_alone(preset):
  model, params = made(preset)
  tokens = some_tokens(2, 11)
  lengths = [[4, 5], [5, 4]]
  segments, positions = np.zeros((2, 11), int), np.zeros((2, 11), int)
  for row, cuts in enumerate(lengths):
    start = 0
    for number, n in enumerate(cuts):
      segments[row, start : start + n] = number + 1
      positions[row, start : start + n] = np.arange(n)
      start += n
  packed = dict(tokens=tokens, segments=segments, positions=positions)
  together, _ = hidden(model, params, packed)
  for row, cuts in enumerate(lengths):
    start = 0
    for n in cuts:
      alone = hidden(
        model, params, {'tokens': tokens[row : row + 1, start : start + n]}
      )
      close(together[row, start : start + n], alone[0][0])
      start += n


@pytest.mark.slow
def test_scanned_unrolled_and_unstacked_layers_agree():
  options = {**FAMILIES['gemma3'], 'layers': 5}
  batch = {'tokens': some_tokens(2, 8)}
  params = make('gemma3', **options).init(jax.random.key(0))
  assert set(params['layers']) == {'0:4:2', '1:4:2', '4:5:1'}

  def run(params, **kinds):
    model = make('gemma3', **options, **kinds)
    hidden, _, aux = model.hidden(params, batch, watch=('residual', 'attention'))
    return jnp.sum(jnp.sin(hidden)), aux['watch']

  def grads(**kinds):
    both = jax.value_and_grad(functools.partial(run, **kinds), has_aux=True)
    return jax.jit(both)(params)

  unrolled = grads(scan=False)
  assert unrolled[0][1]['residual'].shape == (5, 2, 8, 16)
  jax.tree.map(near, unrolled, grads(scan=True))
  apart = unstack_layers(params)
  assert isinstance(apart['layers']['0:4:2'], list)
  for scan in (False, True):
    close(jax.jit(functools.partial(run, scan=scan))(apart)[0], unrolled[0][0])


@pytest.mark.slow
@pytest.mark.parametrize('scan', [False, True])
def test_remat_changes_no_gradient_and_keeps_less(scan):
  batch = {'tokens': some_tokens(2, 16)}
  options = dict(scan=scan, layers=2)
  params = make(**options).init(jax.random.key(0))

  def run(remat):
    model = make(**options, remat=remat)
    total = lambda p: jnp.sum(jnp.sin(model.hidden(p, batch)[0]))  # noqa: E731
    kept = jax.tree.leaves(jax.jit(lambda p: jax.vjp(total, p)[1])(params))
    return jax.jit(jax.grad(total))(params), sum(x.nbytes for x in kept)

  grads, most = run('none')
  for remat in ('full', 'dots', 'save_attention'):
    other, kept = run(remat)
    jax.tree.map(close, grads, other)
    assert kept < most


@pytest.mark.parametrize(
  ('preset', 'scan'), [*((name, False) for name in FAMILIES), ('gemma3', True)]
)
def test_a_cache_filled_in_parts_equals_one_pass(preset, scan):
  _, params = made(preset)
  model = make(preset, **FAMILIES[preset], scan=scan)
  tokens = some_tokens(2, 9)
  whole, _ = hidden(model, params, {'tokens': tokens})
  cache = model.new_cache(2, 11, jnp.float32)
  step = jax.jit(lambda p, t, c: model.hidden(p, {'tokens': t}, cache=c)[:2])
  parts = []
  for start, stop in ((0, 4), (4, 8), (8, 9)):
    part, cache = step(params, tokens[:, start:stop], cache)
    parts.append(part)
  close(jnp.concatenate(parts, 1), whole, atol=1e-4)
  assert list(cache.lengths) == [9, 9]


@pytest.mark.slow
def test_dropout_belongs_to_the_row():
  model = make('gpt', dropout=0.3, attention_dropout=0.2)
  params = model.init(jax.random.key(0))
  batch = {'tokens': some_tokens(4, 6), 'rows': jnp.arange(4)}
  draw = jax.jit(lambda b, key: model.hidden(params, b, key=key)[0])
  whole = draw(batch, jax.random.key(5))
  halves = [jax.tree.map(lambda x, s=s: x[s : s + 2], batch) for s in (0, 2)]
  parts = [draw(half, jax.random.key(5)) for half in halves]
  close(jnp.concatenate(parts), whole)
  assert not np.allclose(whole, draw(batch, jax.random.key(6)))
  same = {'tokens': jnp.tile(batch['tokens'][:1], (4, 1)), 'rows': jnp.arange(4)}
  rows = np.asarray(draw(same, jax.random.key(5)))
  assert not np.allclose(rows[0], rows[1])
  plain, _ = hidden(model, params, batch)
  close(plain, hidden(make('gpt'), params, batch)[0])


@pytest.mark.parametrize('rate', [0.1, 0.5])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate):
  x = dropout(jnp.ones((4, 1000, 5)), rate, jax.random.key(0), jnp.arange(4))
  assert abs(float(jnp.mean(x == 0)) - rate) < 0.02
  assert abs(float(jnp.mean(x)) - 1) < 0.03


def test_a_prefix_is_attended_to_and_cached():
  model, params = made('gpt')
  tokens = some_tokens(2, 6)
  table = params['embed']['tokens']
  batch = {'tokens': tokens[:, 2:], 'prefix': table[tokens[:, :2]]}
  want = hidden(model, params, {'tokens': tokens})[0][:, 2:]
  close(hidden(model, params, batch)[0], want)
  cache = model.new_cache(2, 8, jnp.float32)
  got, cache = hidden(model, params, batch, cache=cache)
  close(got, want)
  assert list(cache.lengths) == [6, 6]


def test_kinds_and_sinusoids_change_what_they_should():
  model = make('gpt', positions='sinusoidal', kinds=3, causal=False)
  params = model.init(jax.random.key(0))
  assert 'positions' not in params['embed']
  tokens = jnp.full((1, 4), 7)
  plain, _ = hidden(model, params, {'tokens': tokens})
  assert not np.allclose(plain[0, 0], plain[0, 1])
  batch = {'tokens': tokens, 'kinds': jnp.full((1, 4), 2)}
  assert not np.allclose(plain, hidden(model, params, batch)[0])


def test_a_mesh_changes_no_number():
  model, params = made('gemma3')
  batch = {'tokens': some_tokens(4, 8)}

  def total(params, batch):
    return jnp.sum(jnp.sin(model.hidden(params, batch)[0]))

  want = jax.jit(jax.value_and_grad(total))(params, batch)
  with sharding.use(sharding.make_mesh(dict(data=2, fsdp=2, tensor=2))):
    layout = sharding.layout(params, model.axes)
    cut = jax.device_put(params, layout)
    up = cut['layers']['0:2:2']['mlp']['up']
    assert up.addressable_shards[0].data.shape == (1, 8, 12)
    got = jax.jit(jax.value_and_grad(total))(cut, sharding.put(batch))
  jax.tree.map(functools.partial(near, atol=1e-4), want, jax.device_get(got))


def test_bfloat16_keeps_weights_norms_and_logits_in_float32():
  model = make('qwen3', dtype='bfloat16')
  params = model.init(jax.random.key(0))
  batch = {'tokens': some_tokens(2, 6)}
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  half, _ = hidden(model, params, batch)
  assert half.dtype == jnp.bfloat16
  assert model.heads['lm'](params, half).dtype == jnp.float32
  close(half.astype(jnp.float32), hidden(make('qwen3'), params, batch)[0], atol=0.1)


def test_a_misspelt_watch_names_the_right_one():
  model, params = made('llama')
  with pytest.raises(Mistake, match="did you mean 'residual'"):
    model.hidden(params, {'tokens': some_tokens(1, 3)}, watch=('residul',))
