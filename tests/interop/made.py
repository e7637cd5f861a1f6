"""A published Llama of a few thousand weights, written without our code."""

import json

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from tests.tokenizers import specs

LAYERS, D, H, G, K, F = 3, 12, 4, 2, 6, 20
CONFIG = dict(
  architectures=['LlamaForCausalLM'],
  model_type='llama',
  hidden_size=D,
  num_hidden_layers=LAYERS,
  num_attention_heads=H,
  num_key_value_heads=G,
  head_dim=K,
  intermediate_size=F,
  max_position_embeddings=64,
  rms_norm_eps=1e-5,
  rope_theta=2e3,
  tie_word_embeddings=False,
  torch_dtype='bfloat16',
  eos_token_id=262,
)
TEMPLATE = '{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}'


def tokenizer():
  """Byte-level, cut as GPT-2's."""
  found = specs.byte_level()
  found['model']['ignore_merges'] = False
  return {**found, 'pre_tokenizer': dict(specs.BYTE_LEVEL, use_regex=True)}


def vocab():
  return max(t['id'] for t in tokenizer()['added_tokens']) + 1


def tensors(rows=0, tied=False):
  """float32 by name, all different."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.standard_normal(shape).astype(np.float32)

  rows = rows or vocab()
  found = {'model.embed_tokens.weight': draw(rows, D), 'model.norm.weight': draw(D)}
  if not tied:
    found['lm_head.weight'] = draw(rows, D)
  shapes = {
    'self_attn.q_proj': (H * K, D),
    'self_attn.k_proj': (G * K, D),
    'self_attn.v_proj': (G * K, D),
    'self_attn.o_proj': (D, H * K),
    'mlp.gate_proj': (F, D),
    'mlp.up_proj': (F, D),
    'mlp.down_proj': (D, F),
    'input_layernorm': (D,),
    'post_attention_layernorm': (D,),
  }
  for layer in range(LAYERS):
    for name, shape in shapes.items():
      found[f'model.layers.{layer}.{name}.weight'] = draw(*shape)
  return found


DTYPES = dict(float32=np.float32, float16=np.float16, bfloat16=ml_dtypes.bfloat16)


def write(folder, dtype='bfloat16', weights=None, files=1, **config):
  """A folder as transformers writes it; config=None leaves a key out."""
  folder.mkdir(parents=True)
  weights = tensors() if weights is None else weights
  rows = len(weights.get('model.embed_tokens.weight', np.zeros(vocab())))
  told = {**CONFIG, 'vocab_size': rows, **config}
  told = {k: v for k, v in told.items() if v is not None}
  (folder / 'config.json').write_text(json.dumps(told))
  (folder / 'tokenizer.json').write_text(json.dumps(tokenizer()))
  edges = dict(bos_token='<|begin_of_text|>', eos_token='<|eot_id|>')
  (folder / 'tokenizer_config.json').write_text(json.dumps(edges))
  (folder / 'chat_template.jinja').write_text(TEMPLATE)
  (folder / 'README.md').write_text('---\nlicense: mit\n---\n')
  generation = dict(temperature=0.6, eos_token_id=[258, 262])
  (folder / 'generation_config.json').write_text(json.dumps(generation))
  weights = {k: v.astype(DTYPES[dtype]) for k, v in weights.items()}
  if files == 1:
    save_file(weights, folder / 'model.safetensors')
    return folder
  table = {}
  for part in range(files):
    name = f'model-{part + 1:05}-of-{files:05}.safetensors'
    own = dict(list(weights.items())[part::files])
    save_file(own, folder / name)
    table |= dict.fromkeys(own, name)
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'metadata': {}, 'weight_map': table}))
  return folder
