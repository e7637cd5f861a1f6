"""Ten steps of each optimizer against its algorithm, written again in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gptjax import lookup, tree
from gptjax.optim import muon
from gptjax.words import Mistake

D, H, G, K, F, V, R = 12, 3, 1, 4, 28, 16, 2
LR, WD, STEPS = 0.02, 0.1, 10
PARAMS = {  # path: (shape, logical axes)
  'embed/tokens': ((V, D), ('vocab', 'embed')),
  'embed/positions': ((8, D), ('position', 'embed')),
  'layers/0:2:1/attention/query': (
    (R, D, H, K),
    ('layers', 'embed', 'heads', 'head'),
  ),
  'layers/0:2:1/attention/key': (
    (R, D, G, K),
    ('layers', 'embed', 'kv_heads', 'head'),
  ),
  'layers/0:2:1/attention/query_bias': ((R, H, K), ('layers', 'heads', 'head')),
  'layers/0:2:1/attention/out': ((R, H, K, D), ('layers', 'heads', 'head', 'embed')),
  'layers/0:2:1/mlp/up': ((R, D, F), ('layers', 'embed', 'mlp')),
  'layers/0:2:1/mlp/down': ((R, F, D), ('layers', 'mlp', 'embed')),
  'layers/0:2:1/norm_mlp/scale': ((R, D), ('layers', 'norm')),
  'norm/scale': ((D,), ('norm',)),
  'heads/lm': ((D, V), ('embed', 'vocab')),
  'heads/classes': ((D, 3), ('embed', None)),
}
LAYER = 'layers/0:2:1/'
HIDDEN = [
  LAYER + name
  for name in (
    'attention/query',
    'attention/key',
    'attention/out',
    'mlp/up',
    'mlp/down',
  )
]
DECAYED = [*HIDDEN, 'heads/lm', 'heads/classes']


def nest(flat):
  nested = {}
  for path, value in flat.items():
    *keys, last = path.split('/')
    node = nested
    for key in keys:
      node = node.setdefault(key, {})
    node[last] = value
  return nested


AXES = nest({path: names for path, (_, names) in PARAMS.items()})


def draw(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return {p: scale * rng.standard_normal(s) for p, (s, _) in PARAMS.items()}


def single(flat):
  return nest({path: jnp.asarray(x, jnp.float32) for path, x in flat.items()})


def make(name, axes=AXES, **options):
  given = {'lr': LR, 'decay': 'linear', 'warmup': 3, 'weight_decay': WD, **options}
  return lookup.make(
    'optim', {'name': name, **given}, 'c.optim', steps=STEPS, axes=axes
  )


def run(optimizer, start, steps=STEPS):
  """(params, what weights gives, state) after some steps, by path."""
  params, state = single(start), optimizer.init(single(start))
  update = jax.jit(optimizer.update)
  for n in range(steps):
    params, state = update(single(draw(100 + n, 0.5)), state, params, n)
  return tree.paths(params), tree.paths(optimizer.weights(state, params, {})), state


def clipped(grads, limit=1.0):
  norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
  return {path: g * min(1.0, limit / norm) for path, g in grads.items()}


def rate(n):
  return LR * ((n + 1) / 3 if n < 3 else 1 - (n - 3) / (STEPS - 3))


def numpy_run(start, direction):
  """Decoupled decay around `direction(n, path, gradient, parameter)`."""
  params = {path: x.copy() for path, x in start.items()}
  for n in range(STEPS):
    for path, g in clipped(draw(100 + n, 0.5)).items():
      p, decay = params[path], WD * (path in DECAYED)
      params[path] = p - rate(n) * (direction(n, path, g, p) + decay * p)
  return params


def assert_close(found, expected, atol=1e-5):
  assert found.keys() == expected.keys()
  for path, x in found.items():
    np.testing.assert_allclose(x, expected[path], atol=atol, rtol=1e-5, err_msg=path)


def adam(b1=0.9, b2=0.95, eps=1e-8):
  m, v = {}, {}

  def direction(n, path, g, _):
    m[path] = b1 * m.get(path, 0) + (1 - b1) * g
    v[path] = b2 * v.get(path, 0) + (1 - b2) * g * g
    return (
      m[path] / (1 - b1 ** (n + 1)) / (np.sqrt(v[path] / (1 - b2 ** (n + 1))) + eps)
    )

  return direction


def lion(b1=0.9, b2=0.99):
  m = {}

  def direction(n, path, g, _):
    old = m.get(path, 0)
    m[path] = b2 * old + (1 - b2) * g
    return np.sign(b1 * old + (1 - b1) * g)

  return direction


def newton_schulz(G):
  """As in the authors' PyTorch code, on one matrix [outputs, inputs]."""
  a, b, c = 3.4445, -4.7750, 2.0315
  X = G / (np.linalg.norm(G) + 1e-7)
  if G.shape[0] > G.shape[1]:
    X = X.T
  for _ in range(5):
    A = X @ X.T
    X = a * X + (b * A + c * A @ A) @ X
  return X.T if G.shape[0] > G.shape[1] else X


def muon_direction(scale, nesterov, b=0.95):
  m, rest = {}, adam()
  inputs = {'query': 1, 'key': 1, 'up': 1, 'down': 1, 'out': 2}

  def direction(n, path, g, p):
    if path not in HIDDEN:
      return rest(n, path, g, p)
    m[path] = b * m.get(path, 0) + (1 - b) * g
    u = b * m[path] + (1 - b) * g if nesterov else m[path]
    out = np.empty_like(u)
    for layer in range(R):
      sizes = u.shape[1:]
      I = int(np.prod(sizes[: inputs[path.split('/')[-1]]]))  # noqa: E741
      matrix = u[layer].reshape(I, -1).T
      rows, columns = matrix.shape
      if scale == 'width':
        s = max(1, rows / columns) ** 0.5
      else:
        s = 0.2 * max(rows, columns) ** 0.5
      out[layer] = (s * newton_schulz(matrix)).T.reshape(sizes)
    return out

  return direction


def test_adamw():
  found, weights, _ = run(make('adamw'), draw(0))
  assert_close(found, numpy_run(draw(0), adam()))
  assert_close(weights, found, atol=0)


def test_lion():
  found, _, _ = run(make('lion'), draw(0))
  assert_close(found, numpy_run(draw(0), lion()))


@pytest.mark.parametrize('scale', ['rms', 'width'])
@pytest.mark.parametrize('nesterov', [True, False])
def test_muon(scale, nesterov):
  found, _, _ = run(make('muon', scale=scale, nesterov=nesterov), draw(0))
  assert_close(found, numpy_run(draw(0), muon_direction(scale, nesterov)))


def test_schedule_free():
  """The paper's x, y, z, each kept; the authors' weight lr^2 of the largest rate."""
  b1, b2 = 0.9, 0.999
  x, z, y = draw(0), draw(0), draw(0)
  v = {path: np.zeros_like(p) for path, p in x.items()}
  total = largest = 0.0
  for n in range(STEPS):
    largest = max(largest, rate(n))
    total += largest**2
    c = largest**2 / total
    for path, g in clipped(draw(100 + n, 0.5)).items():
      v[path] = b2 * v[path] + (1 - b2) * g * g
      u = g / (np.sqrt(v[path] / (1 - b2 ** (n + 1))) + 1e-8)
      z[path] = z[path] - rate(n) * (u + WD * (path in DECAYED) * y[path])
      x[path] = (1 - c) * x[path] + c * z[path]
      y[path] = b1 * x[path] + (1 - b1) * z[path]
  params, weights, _ = run(make('schedule_free'), draw(0))
  assert_close(params, y)
  assert_close(weights, x)


@pytest.mark.parametrize('relative', [True, False])
def test_adafactor_of_matrices_equals_optax(relative):
  shapes = {'up': (D, F), 'tokens': (V, D), 'scale': (D,)}
  axes = {'up': ('embed', 'mlp'), 'tokens': ('vocab', 'embed'), 'scale': ('norm',)}
  rng = np.random.default_rng(0)
  start = {
    k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()
  }
  ours = make('adafactor', axes, weight_decay=0.0, decay='constant', relative=relative)
  theirs = optax.adafactor(
    lambda n: ours.rate(n + 1),
    min_dim_size_to_factor=1,
    multiply_by_parameter_scale=relative,
  )
  mine, state = start, ours.init(start)
  other, other_state = start, theirs.init(start)
  for n in range(STEPS):
    grads = {
      k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()
    }
    mine, state = jax.jit(ours.update)(grads, state, mine, n)
    change, other_state = jax.jit(theirs.update)(grads, other_state, other)
    other = optax.apply_updates(other, change)
  assert_close(mine, other)
  assert jax.tree.map(jnp.shape, state.rule.squares) == {
    'up': {'rows': (D, 1), 'columns': (1, F)},
    'tokens': {'rows': (V, 1), 'columns': (1, D)},
    'scale': {'all': (D,)},
  }


@pytest.mark.parametrize('name', ['muon', 'adafactor', 'adamw'])
def test_a_stacked_update_equals_those_of_its_layers(name):
  """The global norm is that of the whole tree, so clipping is off."""
  start = draw(0)
  stacked, _, _ = run(make(name, clip=0.0), start)
  only = [path for path in PARAMS if path.startswith(LAYER)]
  for layer in range(R):
    axes = nest({path: PARAMS[path][1][1:] for path in only})
    optimizer = make(name, axes, clip=0.0)
    params = single({path: start[path][layer] for path in only})
    state = optimizer.init(params)
    for n in range(STEPS):
      grads = {path: draw(100 + n, 0.5)[path][layer] for path in only}
      params, state = jax.jit(optimizer.update)(single(grads), state, params, n)
    expected = {path: stacked[path][layer] for path in only}
    assert_close(tree.paths(params), expected, atol=2e-6)


def test_which_leaves_muon_orthogonalizes():
  assert sorted(muon.hidden_matrices(AXES)) == sorted(HIDDEN)
  state = make('muon').init(single(draw(0)))
  assert sorted(tree.paths(state.rule.momentum)) == sorted(HIDDEN)
  others = sorted(set(PARAMS) - set(HIDDEN))
  assert sorted(tree.paths(state.rule.adam.mu)) == others
  bare = {path: names for path, (_, names) in PARAMS.items() if path not in HIDDEN}
  with pytest.raises(
    Mistake, match='muon finds no hidden matrix among embed/positions'
  ):
    make('muon', nest(bare))


def test_orthogonalize_brings_singular_values_near_one():
  x = jax.random.normal(jax.random.key(0), (3, 40, 64))
  x = x * jnp.linspace(1, 50, 40).reshape(1, -1, 1)
  for matrices in (x, jnp.swapaxes(x, 1, 2), x[:, :20]):
    values = np.linalg.svd(muon.orthogonalize(matrices), compute_uv=False)
    assert values.min() > 0.5
    assert values.max() < 1.3


@pytest.mark.parametrize('shape', [(40, 64), (20, 64), (64, 20), (64, 64)])
def test_orthogonalize_every_shape_as_the_authors_do(shape):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((3, *shape)) * np.geomspace(1, 1e-3, shape[1])
  found = muon.orthogonalize(jnp.asarray(x, jnp.float32))
  expected = np.stack([newton_schulz(m) for m in x])
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_orthogonalize_in_bfloat16_elsewhere():
  traced = jax.jit(muon.orthogonalize).trace(jnp.zeros((2, 20, 64)))
  for platform in ('tpu', 'cuda'):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    dots = [line for line in text.splitlines() if 'dot_general' in line]
    assert len(dots) == 15  # Three a time, as the authors have it.
    assert all('xbf16>' in line and 'xf32>' not in line for line in dots)


def test_muon_with_a_rate_of_its_own_for_the_rest():
  one, _, _ = run(make('muon'), draw(0))
  two, _, _ = run(make('muon', adam_lr=LR / 4), draw(0))
  four, _, _ = run(make('adamw', lr=LR / 4), draw(0))
  for path in PARAMS:
    expected = one if path in HIDDEN else four
    np.testing.assert_allclose(two[path], expected[path], atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
  'name', ['adamw', 'lion', 'muon', 'adafactor', 'schedule_free']
)
def test_the_axes_of_the_state_fit_its_arrays(name):
  options = {} if name == 'schedule_free' else {'ema': 0.9}
  optimizer = make(name, **options)
  state = optimizer.init(single(draw(0)))
  seen = []

  def check(leaf, names):
    assert len(names) == leaf.ndim
    seen.append((leaf.shape, names))

  jax.tree.map(check, state, optimizer.axes(AXES))
  query = PARAMS[LAYER + 'attention/query']
  assert query in seen or name == 'adafactor'
  assert (query in seen) == (name != 'adafactor' or bool(options))


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('adamw', {'clip': -1.0}, 'c.optim.clip=-1.0'),
    ('adamw', {'weight_decay': -0.1}, 'c.optim.weight_decay=-0.1'),
    ('lion', {'ema': 1.0}, 'c.optim.ema=1.0'),
    ('muon', {'scale': 'rmss'}, "c.optim.scale='rmss'.*did you mean 'rms'"),
    ('schedule_free', {'b1': 0.0}, 'c.optim.b1=0.0'),
    ('schedule_free', {'ema': 0.9}, "c.optim: schedule_free takes no 'ema'"),
    ('adamw', {'wd': 0.9}, "c.optim: adamw takes no 'wd'"),
    ('schedules', {}, 'schedules.py is no choice'),
  ],
)
def test_mistakes(name, options, message):
  with pytest.raises(Mistake, match=message):
    make(name, **options)
