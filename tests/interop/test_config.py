"""Every key of a config.json is read, known to change nothing, or refused."""

import dataclasses
import re

import pytest

from gptjax.interop import config
from gptjax.models.settings import make_settings
from gptjax.words import Mistake
from tests.interop.published import CONFIGS

SMALL = dict(vocab=300, layers=4, embed=24, heads=4, mlp=40)


def read(**told):
  return config.read_config({'model_type': 'llama', **told})[1]


@pytest.mark.parametrize('name', CONFIGS)
def test_published_models_are_our_presets(name):
  _, c = config.read_config(CONFIGS[name])
  want = make_settings(name, {})
  assert config.canonical(c) == config.canonical(want)
  assert (c.vocab, c.length) == (want.vocab, want.length)
  # And a run of the preset is written as that family again.
  assert config.choose_family(want) == CONFIGS[name]['model_type']


def test_what_is_left_out_is_as_transformers_has_it():
  c = read()
  assert (c.embed, c.layers, c.heads, c.kv_heads, c.head) == (4096, 32, 32, 32, 128)
  assert not c.tied
  assert read(model_type='gemma2').final_softcap == 30
  assert read(model_type='gemma2', final_logit_softcapping=None).final_softcap == 0
  assert read(model_type='mistral').window == 4096
  assert read(model_type='mistral', sliding_window=None).pattern == ('global',)
  assert read(model_type='gemma3_text').pattern == (*5 * ('local',), 'global')
  assert read(model_type='gpt2').mlp == 3072


SCALED = dict(rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
REFUSED = [
  (dict(model_type='mamba'), "model_type='mamba'"),
  (dict(model_type='lama'), "did you mean 'llama'"),
  (dict(model_type=None), 'model_type=None'),
  (dict(hidden_act='mish'), "hidden_act='mish'"),
  (dict(hidden_size='4096'), "hidden_size='4096': of type int"),
  (dict(hidden_size=True), 'hidden_size=True: of type int'),
  (dict(rms_norm_eps='small'), "rms_norm_eps='small': of type float"),
  (dict(tie_word_embeddings=1), 'tie_word_embeddings=1: of type bool'),
  (dict(num_attention_heads=0), 'heads=0'),
  (dict(num_key_value_heads=5), 'no multiple of kv_heads=5'),
  (dict(head_dim=7), 'head=7 is odd'),
  (dict(hidden_sise=4096), 'hidden_sise=4096: llama has no such key here'),
  (dict(hidden_sise=4096), "did you mean 'hidden_size'"),
  (dict(rope_interleaved=True), 'rope_interleaved=True'),
  (dict(partial_rotary_factor=0.5), 'partial_rotary_factor: 1 is all'),
  (dict(rope_scaling=dict(type='dynamic', factor=2.0)), "rope_type='dynamic'"),
  (dict(rope_scaling=dict(rope_type='longrope')), "rope_type='longrope'"),
  (dict(rope_scaling=dict(rope_type='linear')), 'linear without factor'),
  (dict(rope_scaling=dict(rope_type='linear', factor='2')), "factor='2': a number"),
  (dict(rope_scaling={**SCALED, 'beta_fast': 3}), 'llama3 with beta_fast=3'),
  (dict(rope_scaling='linear'), "rope_scaling='linear': an object"),
  (
    dict(rope_scaling=SCALED, rope_parameters={**SCALED, 'factor': 4.0}),
    'rope_parameters and rope_scaling say different things',
  ),
  (dict(is_decoder=True), 'is_decoder=True'),
  (dict(add_cross_attention=True), 'add_cross_attention=True'),
  (dict(pruned_heads={'0': [1]}), 'pruned_heads'),
  (dict(auto_map={'AutoModel': 'x.Y'}), 'auto_map'),
  (dict(quantization_config={'bits': 4}), 'quantization_config'),
  (dict(model_type='gpt2', scale_attn_by_inverse_layer_idx=True), 'inverse_layer_idx'),
  (dict(model_type='gpt_neo', num_layers=5), 'attention_types does not give'),
  (dict(model_type='gpt_neo', attention_types=3), 'attention_types=3'),
  (dict(num_hidden_layers=10**6), 'num_hidden_layers=1000000: from 1 to 10,000'),
  (
    dict(model_type='gpt_neo', attention_types=[[['far'], 24]]),
    "types='far'",
  ),
  (dict(model_type='qwen2', layer_types=['full_attention']), 'layer_types has not one'),
  (
    dict(model_type='qwen2', layer_types=32 * ['chunked_attention']),
    "layer_types='chunked_attention'",
  ),
  (
    dict(model_type='qwen2', layer_types=32 * ['sliding_attention']),
    'use_sliding_window is false',
  ),
  (dict(model_type='gemma2', use_bidirectional_attention=True), 'bidirectional'),
  (
    dict(
      model_type='gemma3_text',
      rope_parameters=dict(sliding_attention=dict(rope_type='linear', factor=2.0)),
    ),
    'scaling there cannot be read',
  ),
  (
    dict(model_type='gemma3_text', rope_parameters=dict(rope_theta=3.0)),
    "a part of rope_parameters='rope_theta'",
  ),
]


@pytest.mark.parametrize(('told', 'says'), REFUSED, ids=str)
def test_what_would_be_another_model_is_refused(told, says):
  with pytest.raises(Mistake, match=re.escape(says)) as caught:
    config.read_config({'model_type': 'llama', **told})
  assert '\n' not in str(caught.value)


ANYTHING = [None, [], {}, 'x', -1, 0, 1.5, True, [1], {'a': 1}, [[1]], 10**30]


@pytest.mark.parametrize('name', CONFIGS)
def test_whatever_a_key_says_is_read_or_a_mistake(name):
  keys = {*CONFIGS[name], 'layer_types', 'rope_parameters', 'rope_scaling', 'head_dim'}
  for key in keys:
    for value in [*ANYTHING, {'rope_type': []}, {'rope_type': 'yarn', 'factor': 'x'}]:
      try:
        config.read_config({**CONFIGS[name], key: value})
      except Mistake as mistake:
        assert '\n' not in str(mistake)  # noqa: PT017 (others may be read)


def test_old_and_new_files_say_the_same():
  old = read(rope_theta=5e5, rope_scaling={'type': 'linear', 'factor': 2})
  new = read(rope_parameters=dict(rope_type='linear', rope_theta=5e5, factor=2))
  assert old == new
  both = dict(rope_type='linear', rope_theta=5e5, factor=2)
  assert read(rope_parameters=both, rope_scaling=both, rope_theta=5e5) == new
  old = read(model_type='gemma3_text', rope_local_base_freq=7e3, rope_theta=9e5)
  new = read(
    model_type='gemma3_text',
    rope_parameters=dict(
      full_attention=dict(rope_theta=9e5), sliding_attention=dict(rope_theta=7e3)
    ),
  )
  assert old == new


def test_of_a_model_with_images_the_text_part_is_read():
  text = dict(model_type='gemma3_text', hidden_size=2560, sliding_window=1024)
  told = dict(model_type='gemma3', text_config=text, vision_config={}, anything=1)
  kind, c = config.read_config(told)
  assert kind == 'gemma3_text'
  assert (c.embed, c.window) == (2560, 1024)


MODELS = {
  'llama': dict(preset='llama', kv_heads=2, theta=2e4, norm_epsilon=1e-3, tied=False),
  'mistral': dict(preset='mistral', window=7),
  'qwen2': dict(preset='qwen2', pattern='global,global,global,local', window=9),
  'qwen3': dict(preset='qwen3', head=14, rope=dict(kind='yarn', factor=2.0, length=8)),
  'gemma2': dict(preset='gemma2', window=6, attention_scale=0.3),
  'gemma3_text': dict(preset='gemma3', pattern='local,global', window=5, head=8),
  'gpt2': dict(preset='gpt', attention_scale=1.0),
  'gpt_neo': dict(preset='neo', pattern='local,local,global', window=3),
}


@pytest.mark.parametrize('kind', MODELS)
def test_a_model_of_ours_finds_its_family(kind):
  told = dict(MODELS[kind])
  c = make_settings(told.pop('preset'), {**SMALL, **told, 'length': 99})
  assert config.choose_family(c) == kind
  again, back = config.read_config(config.write_config(kind, c))
  assert again == kind
  assert config.canonical(back) == config.canonical(c)
  assert back.length == 99


def test_a_family_is_kept_where_several_can_say_it():
  c = make_settings('llama', dict(SMALL, norm_epsilon=1e-6))
  assert config.choose_family(c) == 'llama'
  assert config.choose_family(c, 'mistral') == 'mistral'
  assert config.choose_family(c, 'qwen3') == 'llama'


@pytest.mark.parametrize(
  ('preset', 'told', 'says'),
  [
    ('llama', dict(positions='sinusoidal'), "positions='sinusoidal'"),
    ('llama', dict(qk_norm=True, mlp_bias=True), 'llama, the nearest, has no qk_norm'),
    ('gpt', dict(activation='silu', gated=True), 'gated=True'),
    ('llama', dict(causal=False), 'causal=False'),
    ('llama', dict(out_bias=True), 'out_bias=True'),
    ('gemma3', dict(window=4, pattern='local,global', theta=5.0, local_theta=0.0,
      rope=dict(kind='linear', factor=2.0)), 'the nearest, has no'),
  ],
)  # fmt: skip
def test_a_model_of_no_family_is_refused_with_what_differs(preset, told, says):
  c = make_settings(preset, {**SMALL, **told})
  with pytest.raises(Mistake, match='no family of transformers') as caught:
    config.choose_family(c)
  assert says in str(caught.value)


def test_a_scaling_that_is_another_theta_is_written_as_one():
  c = make_settings('llama', dict(SMALL, rope=dict(kind='ntk', factor=4.0)))
  assert config.choose_family(c) == 'llama'
  written = config.write_config('llama', c)
  size = c.head
  assert written['rope_theta'] == c.theta * 4 ** (size / (size - 2))
  assert written['rope_scaling'] is None


def test_every_setting_is_compared_or_free():
  """A new setting must be thought of here before it is exported."""
  names = {f.name for f in dataclasses.fields(make_settings('llama', SMALL))}
  compared = set(config.canonical(make_settings('llama', SMALL)))
  assert names - compared <= {
    'vocab', 'rows', 'length', 'dropout', 'attention_dropout', 'init', 'init_std',
    'init_residual', 'remat', 'scan', 'dtype',
  }  # fmt: skip
