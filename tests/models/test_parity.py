"""Logits equal those of `transformers`, at sizes that have nothing in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax import tree
from gptjax.models.transformer import transformer

torch = pytest.importorskip('torch', reason='parity needs the extra [parity]')
transformers = pytest.importorskip('transformers', reason='needs the extra [parity]')

pytestmark = pytest.mark.slow

LAYERS, D, H, G, K, F, V = 5, 36, 6, 3, 10, 52, 131
GPT = dict(layers=LAYERS, embed=D, heads=H, vocab=V, length=40)
SIZES = dict(layers=LAYERS, embed=D, heads=H, kv_heads=G, mlp=F, vocab=V)
SHAPE = dict(
  vocab_size=V,
  hidden_size=D,
  intermediate_size=F,
  num_hidden_layers=LAYERS,
  num_attention_heads=H,
  num_key_value_heads=G,
  max_position_embeddings=40,
)
KINDS = ['sliding_attention', 'full_attention']


def llama(**rope):
  return transformers.LlamaConfig(
    **SHAPE, rms_norm_eps=1e-5, tie_word_embeddings=True, rope_parameters=rope
  )


def gpt_neo():
  return transformers.GPTNeoConfig(
    vocab_size=V, max_position_embeddings=40, hidden_size=D, num_layers=4, num_heads=H,
    attention_types=[[['global', 'local'], 2]], window_size=5,
    resid_dropout=0, embed_dropout=0, attention_dropout=0,
  )  # fmt: skip


# Name: (configuration of transformers, our preset, our settings).
FAMILIES = {
  'gpt2': lambda: (
    transformers.GPT2Config(vocab_size=V, n_positions=40, n_embd=D, n_layer=LAYERS,
      n_head=H, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0), 'gpt', GPT),
  'gpt_neo': lambda: (gpt_neo(), 'neo', dict(GPT, layers=4, window=5)),
  'llama': lambda: (llama(rope_type='default', rope_theta=9e3), 'llama',
    dict(SIZES, theta=9e3)),
  'llama_linear': lambda: (llama(rope_type='linear', rope_theta=1e4, factor=3.0),
    'llama', dict(SIZES, rope=dict(kind='linear', factor=3.0))),
  'llama3': lambda: (llama(rope_type='llama3', rope_theta=500.0, factor=8.0,
    low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
    'llama', dict(SIZES, theta=500.0, rope=dict(kind='llama3', factor=8.0, length=16))),
  'llama_yarn': lambda: (llama(rope_type='yarn', rope_theta=1e4, factor=4.0,
    beta_fast=4.0, original_max_position_embeddings=20), 'llama',
    dict(SIZES, rope=dict(kind='yarn', factor=4.0, length=20, fast=4.0))),
  'qwen2': lambda: (transformers.Qwen2Config(**SHAPE, rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    rope_parameters=dict(rope_type='default', rope_theta=1e6)), 'qwen2', SIZES),
  'qwen3': lambda: (transformers.Qwen3Config(**SHAPE, head_dim=K, rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    rope_parameters=dict(rope_type='default', rope_theta=1e6)), 'qwen3',
    dict(SIZES, head=K)),
  'gemma2': lambda: (transformers.Gemma2Config(**SHAPE, head_dim=K, sliding_window=5,
    query_pre_attn_scalar=7, attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
    attn_implementation='eager'), 'gemma2', dict(SIZES, head=K, window=5,
    attention_scale=7**-0.5, attention_softcap=2.0, final_softcap=3.0)),
  'gemma3': lambda: (transformers.Gemma3TextConfig(**SHAPE, head_dim=K,
    sliding_window=5, query_pre_attn_scalar=7,
    layer_types=[KINDS[0], KINDS[0], KINDS[1], KINDS[0], KINDS[0]],
    rope_parameters=dict(
      sliding_attention=dict(rope_type='default', rope_theta=1e3),
      full_attention=dict(rope_type='linear', factor=2.0, rope_theta=1e6))),
    'gemma3', dict(SIZES, head=K, window=5, attention_scale=7**-0.5, local_theta=1e3,
      pattern='local,local,global', rope=dict(kind='linear', factor=2.0))),
  'mistral': lambda: (transformers.MistralConfig(**SHAPE, head_dim=K, rms_norm_eps=1e-5,
    sliding_window=5, tie_word_embeddings=False,
    rope_parameters=dict(rope_type='default', rope_theta=1e4)), 'mistral',
    dict(SIZES, head=K, window=5)),
}  # fmt: skip

# Ours -> theirs, for gpt2, for gpt_neo and for all others.
OUTER = {
  'embed/tokens': ('transformer.wte.weight', 'model.embed_tokens.weight'),
  'embed/positions': ('transformer.wpe.weight', ''),
  'norm/scale': ('transformer.ln_f.weight', 'model.norm.weight'),
  'norm/bias': ('transformer.ln_f.bias', ''),
  'heads/lm': ('', 'lm_head.weight'),
}
INNER = {
  'attention/query': ('attn.c_attn', 'attn.attention.q_proj', 'self_attn.q_proj'),
  'attention/key': ('attn.c_attn', 'attn.attention.k_proj', 'self_attn.k_proj'),
  'attention/value': ('attn.c_attn', 'attn.attention.v_proj', 'self_attn.v_proj'),
  'attention/out': ('attn.c_proj', 'attn.attention.out_proj', 'self_attn.o_proj'),
  'attention/query_norm': ('', '', 'self_attn.q_norm'),
  'attention/key_norm': ('', '', 'self_attn.k_norm'),
  'mlp/gate': ('', '', 'mlp.gate_proj'),
  'mlp/up': ('mlp.c_fc', 'mlp.c_fc', 'mlp.up_proj'),
  'mlp/down': ('mlp.c_proj', 'mlp.c_proj', 'mlp.down_proj'),
  'norm_attention': ('ln_1', 'ln_1', 'input_layernorm'),
  'norm_mlp': ('ln_2', 'ln_2', 'post_attention_layernorm'),
  'post_attention': ('', '', 'post_attention_layernorm'),
  'post_mlp': ('', '', 'post_feedforward_layernorm'),
}


def theirs(name, state, family):
  """The weight of `transformers` for our canonical name, before it gets our shape."""
  column = {'gpt2': 0, 'gpt_neo': 1}.get(family, 2)
  if name in OUTER:
    w = state[OUTER[name][min(column // 2, 1)]]
    return w.T if name == 'heads/lm' else w
  _, layer, part, *rest = name.split('/')
  leaf = '/'.join([part, *rest])
  bias = leaf.endswith('bias')
  leaf = leaf.removesuffix('_bias').removesuffix('/bias').removesuffix('/scale')
  key = INNER[leaf][column]
  if 'gemma' in family and leaf == 'norm_mlp':
    key = 'pre_feedforward_layernorm'
  block = 'model.layers' if column == 2 else 'transformer.h'
  w = state[f'{block}.{layer}.{key}.{"bias" if bias else "weight"}']
  if w.ndim == 2 and family != 'gpt2':  # GPT-2 stores [in, out], the others [out, in].
    w = w.T
  if key == 'attn.c_attn':
    w = np.split(w, 3, -1)[['query', 'key', 'value'].index(leaf.split('/')[1])]
  return w


def weights(abstract, state, family):
  """Their weights in our tree, the table of tokens padded."""

  def one(path, leaf):
    names = tree.canonical(path)
    found = np.stack([theirs(name, state, family) for name in names])
    shape = leaf.shape if names != [path] else (1, *leaf.shape)
    if path in ('embed/tokens', 'heads/lm'):
      pad = [(0, n - m) for n, m in zip(shape, found.shape, strict=True)]
      found = np.pad(found, pad, constant_values=9.0)
    return jnp.asarray(found.reshape(leaf.shape))

  return tree.map_paths(one, abstract)


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_are_those_of_transformers(family):
  config, preset, sizes = FAMILIES[family]()
  torch.manual_seed(0)
  theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
  with torch.no_grad():
    for w in theirs.parameters():  # Biases and norms too, and large enough to matter.
      w.add_(0.2 * torch.randn_like(w))
  tokens = np.random.default_rng(0).integers(0, V, (2, 33))
  with torch.no_grad():
    want = theirs(torch.tensor(tokens)).logits.numpy()
  state = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}
  model = transformer(preset=preset, **sizes)
  params = weights(jax.eval_shape(model.init, jax.random.key(0)), state, family)

  @jax.jit
  def run(params, tokens):
    return model.heads['lm'](params, model.hidden(params, {'tokens': tokens})[0])

  got = np.asarray(run(params, tokens))
  np.testing.assert_allclose(got[..., :V], want, atol=1e-4, rtol=0)
  assert np.all(got[..., V:] == -np.inf)
  assert np.ptp(want) > 1
