"""Logits equal those of `transformers`, at sizes that have nothing in common.

Its random models go through the table that reads published weights, and back.
"""

import json

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from gptjax.interop import config
from gptjax.interop.families import BUFFERS, FAMILIES
from gptjax.interop.tensors import Stored, load, tensors
from gptjax.models.transformer import transformer

torch = pytest.importorskip('torch', reason='parity needs the extra [parity]')
transformers = pytest.importorskip('transformers', reason='needs the extra [parity]')

pytestmark = pytest.mark.slow

LAYERS, D, H, G, K, F, V = 5, 36, 6, 3, 10, 52, 131
TEXT, PART = 33, 21  # Tokens; of them so many fill the cache first.
SHAPE = dict(
  vocab_size=V,
  hidden_size=D,
  intermediate_size=F,
  num_hidden_layers=LAYERS,
  num_attention_heads=H,
  num_key_value_heads=G,
  max_position_embeddings=40,
)
LOCAL, GLOBAL = 'sliding_attention', 'full_attention'


def rope(kind='default', theta=1e4, **options):
  return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **options))


def llama(**settings):
  return transformers.LlamaConfig(**{**SHAPE, 'tie_word_embeddings': True, **settings})


def gpt2(**settings):
  rates = dict.fromkeys(('resid_pdrop', 'embd_pdrop', 'attn_pdrop'), 0)
  sizes = dict(vocab_size=V, n_positions=40, n_embd=D, n_layer=3, n_head=H)
  return transformers.GPT2Config(**{**sizes, **rates, **settings})


def neo(**settings):
  types = [[['global', 'local'], 2]]
  sizes = dict(vocab_size=V, max_position_embeddings=40, hidden_size=D, num_layers=4)
  told = dict(sizes, num_heads=H, attention_types=types, window_size=5)
  return transformers.GPTNeoConfig(**{**told, **settings})


def mistral(**settings):
  told = dict(SHAPE, head_dim=K, sliding_window=5)
  return transformers.MistralConfig(**{**told, **settings})


def qwen2(**settings):
  return transformers.Qwen2Config(**{**SHAPE, 'tie_word_embeddings': True, **settings})


def qwen3(**settings):
  return transformers.Qwen3Config(**{**SHAPE, 'head_dim': K, **settings})


def gemma2(**settings):
  told = dict(SHAPE, head_dim=K, sliding_window=5, query_pre_attn_scalar=7)
  told |= dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
  return transformers.Gemma2Config(**{**told, **settings})


def gemma3(**settings):
  told = dict(SHAPE, head_dim=K, sliding_window=5, query_pre_attn_scalar=7)
  return transformers.Gemma3TextConfig(**{**told, **settings})


ODD = dict(hidden_size=45, num_attention_heads=9, head_dim=14)
UNEVEN = dict(
  layer_types=[LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL],
  rope_parameters={
    LOCAL: dict(rope_type='default', rope_theta=1e3),
    GLOBAL: dict(rope_type='linear', factor=2.0, rope_theta=1e6),
  },
)
LLAMA3 = rope(
  'llama3', 500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
  original_max_position_embeddings=16,
)  # fmt: skip
YARN = rope('yarn', 1e4, factor=4.0, beta_fast=4.0, original_max_position_embeddings=20)
MODELS = {
  'gpt2': lambda: gpt2(),
  'gpt2_wide_mlp': lambda: gpt2(n_inner=44, activation_function='gelu'),
  'gpt2_unscaled': lambda: gpt2(scale_attn_weights=False, tie_word_embeddings=False),
  'gpt_neo': lambda: neo(),
  'gpt_neo_uneven': lambda: neo(
    num_layers=5, attention_types=[[['global'], 2], [['local'], 3]]
  ),
  'llama': lambda: llama(**rope(theta=9e3)),
  'llama_odd': lambda: llama(**ODD, tie_word_embeddings=False, rms_norm_eps=1e-3),
  'llama_biased': lambda: llama(attention_bias=True, mlp_bias=True, hidden_act='gelu'),
  'llama_linear': lambda: llama(**rope('linear', factor=3.0)),
  'llama3': lambda: llama(**LLAMA3),
  'llama_yarn': lambda: llama(**YARN),
  'mistral': lambda: mistral(),
  'mistral_whole': lambda: mistral(sliding_window=None),
  'qwen2': lambda: qwen2(**rope(theta=1e6)),
  'qwen2_late': lambda: qwen2(
    use_sliding_window=True, sliding_window=6, max_window_layers=3, **YARN
  ),
  'qwen3': lambda: qwen3(),
  'qwen3_biased': lambda: qwen3(
    attention_bias=True, tie_word_embeddings=True, **LLAMA3
  ),
  'gemma2': lambda: gemma2(),
  'gemma2_uncapped': lambda: gemma2(
    attn_logit_softcapping=None, final_logit_softcapping=None
  ),
  'gemma3': lambda: gemma3(**UNEVEN),
  'gemma3_every_third': lambda: gemma3(sliding_window_pattern=3),
}


def random_model(settings):
  """A model of theirs, biases and norms drawn too, and large enough to matter."""
  settings._attn_implementation = 'eager'
  torch.manual_seed(0)
  theirs = transformers.AutoModelForCausalLM.from_config(settings).eval()
  with torch.no_grad():
    for w in theirs.parameters():
      w.add_(0.2 * torch.randn_like(w))
  return theirs


def stored(theirs):
  state = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}
  if theirs.config.tie_word_embeddings:
    state.pop('lm_head.weight', None)
  return {k: Stored(v.shape, 'F32', lambda v=v: v) for k, v in state.items()}


def abstract(model):
  where = SingleDeviceSharding(jax.devices()[0])
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes
  )


@pytest.mark.parametrize('name', MODELS)
def test_logits_are_those_of_transformers(name):
  theirs = random_model(MODELS[name]())
  tokens = np.random.default_rng(0).integers(0, V, (2, TEXT))
  with torch.no_grad():
    want = theirs(torch.tensor(tokens)).logits.numpy()
  assert np.ptp(want) > 1
  told = json.loads(json.dumps(theirs.config.to_dict()))
  kind, c = config.read_config(told)
  assert kind == theirs.config.model_type
  model = transformer(**vars(c))
  given = stored(theirs)
  params = load(FAMILIES[kind].rows, given, abstract(model), c, BUFFERS)

  @jax.jit
  def run(params, tokens, cache=None):
    hidden, cache, _ = model.hidden(params, {'tokens': tokens}, cache=cache)
    return model.heads['lm'](params, hidden), cache

  got = np.asarray(run(params, tokens)[0])
  np.testing.assert_allclose(got[..., :V], want, atol=1e-4, rtol=0)
  assert np.all(got[..., V:] == -np.inf)
  # The same with the first tokens in the cache: past the window, where there is one.
  _, cache = run(params, tokens[:, :PART], model.new_cache(2, TEXT, np.float32))
  rest = np.asarray(run(params, tokens[:, PART:], cache)[0])
  np.testing.assert_allclose(rest[..., :V], want[:, PART:], atol=1e-4, rtol=0)
  # And back: the same tensors, and a config of which transformers makes the same model.
  back = {t.name: t for t in tensors(FAMILIES[kind].rows, params, c)}
  assert back.keys() == given.keys()
  for key, tensor in back.items():
    np.testing.assert_array_equal(tensor.read(), given[key].read())
    assert tensor.shape == given[key].shape
  assert config.choose_family(c, kind) == kind
  again = type(theirs.config)(**config.write_config(kind, c))
  other = random_model(again)
  other.load_state_dict(theirs.state_dict())
  with torch.no_grad():
    np.testing.assert_array_equal(other(torch.tensor(tokens)).logits.numpy(), want)
