"""Settings, presets and groups: sizes as published, mistakes in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import lookup, sharding, tree
from gptjax.models.presets import PRESETS
from gptjax.models.settings import make_settings
from gptjax.models.structure import groups
from gptjax.models.transformer import transformer
from gptjax.words import Mistake

SIZES = dict(vocab=70, layers=2, embed=16, heads=4, kv_heads=2, mlp=24, length=24)


def make(preset='llama', **settings):
  return transformer(preset=preset, **{**SIZES, **settings})


PUBLISHED = {
  'gpt2': 124_439_808,
  'gpt2-medium': 354_823_168,
  'gpt2-large': 774_030_080,
  'gpt2-xl': 1_557_611_200,
  'gpt-neo-125m': 125_198_592,
  'gpt-neo-1.3b': 1_315_575_808,
  'gpt-neo-2.7b': 2_651_307_520,
  'smollm2-135m': 134_515_008,
  'llama3-8b': 8_030_261_248,
  'llama3.2-1b': 1_235_814_400,
  'mistral-7b': 7_241_732_096,
  'qwen2.5-0.5b': 494_032_768,
  'qwen3-0.6b': 596_049_920,
  'gemma2-2b': 2_614_341_888,
  'gemma3-1b': 999_885_952,
}


@pytest.mark.parametrize('preset', PUBLISHED)
def test_presets_have_their_published_sizes(preset):
  model = transformer(preset=preset)
  c = make_settings(preset, {})
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  padding = (c.padded - c.vocab) * c.embed * (1 if c.tied else 2)
  assert tree.count(shapes) - padding == PUBLISHED[preset]
  ranks = jax.tree.map(lambda x, names: x.ndim == len(names), shapes, model.axes)
  assert all(jax.tree.leaves(ranks))
  known = {
    name for names in tree.paths(model.axes).values() for name in [names] if name
  }
  assert known <= set(sharding.RULES)


def test_every_model_with_sizes_is_compared_with_its_published_one():
  assert set(PUBLISHED) == {name for name, keys in PRESETS.items() if 'layers' in keys}


def test_groups_follow_the_pattern():
  names = lambda preset: [g.names for g in groups(make_settings(preset, {}))]  # noqa: E731
  assert names('gpt2') == [['0:12:1']]
  assert names('gpt-neo-125m') == [['0:12:2', '1:12:2']]
  body, rest = names('gemma3-1b')
  assert body == [f'{i}:24:6' for i in range(6)]
  assert rest == ['24:26:2', '25:26:2']
  shapes = jax.eval_shape(transformer(preset='gemma3-1b').init, jax.random.key(0))
  layers = {n for path in tree.paths(shapes) for n in tree.canonical(path)}
  norms = {n for n in layers if n.endswith('/norm_mlp/scale')}
  assert norms == {f'layers/{i}/norm_mlp/scale' for i in range(26)}


def test_layers_draw_alike_however_they_are_grouped():
  key = jax.random.key(0)
  alone = tree.layers(make('neo', window=3, layers=4).init(key))
  paired = tree.layers(make('neo', pattern='global', layers=4).init(key))
  assert alone.keys() == paired.keys()
  jax.tree.map(np.testing.assert_array_equal, alone, paired)


def test_first_weights_have_their_spread():
  c = dict(embed=64, mlp=256, layers=8)
  params = make('gpt', **c).init(jax.random.key(0))['layers']['0:8:1']
  assert abs(params['mlp']['up'].std() / 0.02 - 1) < 0.05
  assert abs(params['mlp']['down'].std() / (0.02 / 4) - 1) < 0.05
  other = dict(init='fan_in', init_residual='zero')
  params = make('gpt', **c, **other).init(jax.random.key(0))['layers']['0:8:1']
  assert abs(params['mlp']['up'].std() / 0.125 - 1) < 0.05
  assert not params['attention']['out'].any()


@pytest.mark.parametrize('settings', [{}, dict(causal=False), dict(window=5)])
def test_flops_are_those_of_the_products(settings):
  kind = dict(pattern='local') if 'window' in settings else {}
  model = make('llama', vocab=128, tied=False, **settings, **kind)
  B, T, D, H, G, K, F = 2, 9, 16, 4, 2, 4, 24
  products = 2 * (D * H * K + 2 * D * G * K + H * K * D + 3 * D * F) + D * 128
  distance = np.subtract.outer(np.arange(T), np.arange(T))
  pairs = distance >= 0 if settings.get('causal', True) else distance < T
  pairs = pairs & (np.abs(distance) < settings.get('window', T))
  want = 2 * B * T * products + 2 * 4 * B * H * K * pairs.sum()
  assert model.flops([B, T]) == want


def test_the_platform_decides_dtype_and_scan():
  c = make_settings('llama', SIZES)
  mesh = sharding.make_mesh(dict(data=1), jax.devices()[:1])
  assert (c.compute, c.scanned) == (jnp.float32, False)
  with sharding.use(mesh, platform='tpu'):
    assert (c.compute, c.scanned) == (jnp.bfloat16, True)


@pytest.mark.parametrize(
  ('settings', 'line'),
  [
    (dict(preset='lama'), "did you mean 'llama'"),
    (dict(mpl=3), "did you mean 'mlp'"),
    (dict(heads=4, kv_heads=3), 'no multiple of kv_heads=3'),
    (dict(heads=3, kv_heads=3), 'no multiple of heads=3'),
    (dict(embed=12, heads=4), 'odd'),
    (dict(pattern=('local',)), 'need a window'),
    (dict(pattern=('locl',), window=3), "did you mean 'local'"),
    (dict(remat='ful'), "did you mean 'full'"),
    (dict(activation='sliu'), "did you mean 'silu'"),
    (dict(outputs=('lm', 'classes')), 'classes: how many'),
    (dict(rope=dict(kind='yarm')), "did you mean 'yarn'"),
    (dict(rope=dict(kind='linear')), 'needs factor'),
    (dict(rope=dict(kind='linear', factr=2.0)), "did you mean 'factor'"),
    (dict(dropout=1.0), 'below 1'),
    (dict(layers=0), 'at least 1'),
  ],
)
def test_mistakes_name_the_cure(settings, line):
  config = {**SIZES, 'preset': 'llama', **settings, 'name': 'transformer'}
  with pytest.raises(Mistake) as caught:
    lookup.make('models', config, 'c.model')
  assert line in str(caught.value)
  assert '\n' not in str(caught.value)


def test_sizes_that_nobody_gives_are_asked_for():
  with pytest.raises(Mistake, match='needs layers, embed, heads, or a preset'):
    transformer(vocab=10)
