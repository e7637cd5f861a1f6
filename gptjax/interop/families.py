"""Families of `transformers`: what their config.json and their tensors mean here.

One table a family, read in both directions. Defaults are those of the classes of
transformers 5.23, for a config.json may leave a key out. Every key that a file can have
is named: read, or one that changes nothing (HARMLESS), or it is refused.
"""

from typing import NamedTuple

from gptjax.interop.parts import (
  BIAS,
  NEO_KINDS,
  SCALAR,
  Part,
  activation,
  always_sliding,
  depth,
  every_nth_global,
  late_sliding,
  only,
  same,
  softcap,
  unscaled,
)
from gptjax.interop.rotary import TWO_ROTARIES, rotary
from gptjax.interop.tensors import Row
from gptjax.models import presets
from gptjax.models.presets import Preset


class Family(NamedTuple):
  """What `model_type` stands for."""

  architecture: str
  style: Preset  # Settings that all its models share.
  parts: tuple[Part, ...]
  rows: tuple[Row, ...]
  harmless: frozenset[str] = frozenset()  # Keys of the family that change nothing.


# Keys of any config.json that say nothing about the numbers of the forward pass.
_HARMLESS = """
  _name_or_path architectures attn_implementation _attn_implementation
  _attn_implementation_autoset bos_token_id eos_token_id pad_token_id sep_token_id
  cls_token_id decoder_start_token_id dtype torch_dtype transformers_version model_type
  use_cache gradient_checkpointing initializer_range pretraining_tp return_dict
  output_hidden_states output_attentions torchscript use_bfloat16 tf_legacy_loss
  finetuning_task id2label label2id num_labels problem_type tokenizer_class prefix
  task_specific_params max_length min_length do_sample early_stopping num_beams
  num_beam_groups diversity_penalty temperature top_k top_p typical_p
  repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
  bad_words_ids num_return_sequences output_scores return_dict_in_generate
  forced_bos_token_id forced_eos_token_id remove_invalid_values
  exponential_decay_length_penalty suppress_tokens begin_suppress_tokens output_past
  attention_dropout hidden_dropout classifier_dropout transformers.js_config
  unsloth_fixed unsloth_version is_llama_config cache_implementation
"""
HARMLESS = frozenset(_HARMLESS.split())
# Of any config.json, with the one value that means what we compute.
USUAL = (
  only('is_encoder_decoder', False),
  only('is_decoder', False),
  only('add_cross_attention', False),
  only('cross_attention_hidden_size', None),
  only('tie_encoder_decoder', False),
  only('pruned_heads', {}),
  only('chunk_size_feed_forward', 0),
  only('rope_interleaved', False),
)

_LLAMA = 'model.layers.{}.'
_LLAMA_ROWS = (
  Row('model.embed_tokens.weight', 'embed/tokens', 'V D'),
  Row(_LLAMA + 'self_attn.q_proj.weight', 'layers/{}/attention/query', 'HK D'),
  Row(_LLAMA + 'self_attn.k_proj.weight', 'layers/{}/attention/key', 'GK D'),
  Row(_LLAMA + 'self_attn.v_proj.weight', 'layers/{}/attention/value', 'GK D'),
  Row(_LLAMA + 'self_attn.o_proj.weight', 'layers/{}/attention/out', 'D HK'),
  Row(_LLAMA + 'self_attn.q_proj.bias', 'layers/{}/attention/query_bias', 'HK'),
  Row(_LLAMA + 'self_attn.k_proj.bias', 'layers/{}/attention/key_bias', 'GK'),
  Row(_LLAMA + 'self_attn.v_proj.bias', 'layers/{}/attention/value_bias', 'GK'),
  Row(_LLAMA + 'self_attn.o_proj.bias', 'layers/{}/attention/out_bias', 'D'),
  Row(_LLAMA + 'self_attn.q_norm.weight', 'layers/{}/attention/query_norm', 'K'),
  Row(_LLAMA + 'self_attn.k_norm.weight', 'layers/{}/attention/key_norm', 'K'),
  Row(_LLAMA + 'mlp.gate_proj.weight', 'layers/{}/mlp/gate', 'F D'),
  Row(_LLAMA + 'mlp.up_proj.weight', 'layers/{}/mlp/up', 'F D'),
  Row(_LLAMA + 'mlp.down_proj.weight', 'layers/{}/mlp/down', 'D F'),
  Row(_LLAMA + 'mlp.gate_proj.bias', 'layers/{}/mlp/gate_bias', 'F'),
  Row(_LLAMA + 'mlp.up_proj.bias', 'layers/{}/mlp/up_bias', 'F'),
  Row(_LLAMA + 'mlp.down_proj.bias', 'layers/{}/mlp/down_bias', 'D'),
  Row(_LLAMA + 'input_layernorm.weight', 'layers/{}/norm_attention/scale', 'D'),
  Row('model.norm.weight', 'norm/scale', 'D'),
  Row('lm_head.weight', 'heads/lm', 'V D'),
)
LLAMA_ROWS = (
  *_LLAMA_ROWS,
  Row(_LLAMA + 'post_attention_layernorm.weight', 'layers/{}/norm_mlp/scale', 'D'),
)
GEMMA_ROWS = (
  *_LLAMA_ROWS,
  Row(_LLAMA + 'pre_feedforward_layernorm.weight', 'layers/{}/norm_mlp/scale', 'D'),
  Row(
    _LLAMA + 'post_attention_layernorm.weight', 'layers/{}/post_attention/scale', 'D'
  ),
  Row(_LLAMA + 'post_feedforward_layernorm.weight', 'layers/{}/post_mlp/scale', 'D'),
)
_GPT = 'transformer.h.{}.'
_GPT_ROWS = (
  Row('transformer.wte.weight', 'embed/tokens', 'V D'),
  Row('transformer.wpe.weight', 'embed/positions', 'S D'),
  Row('transformer.ln_f.weight', 'norm/scale', 'D'),
  Row('transformer.ln_f.bias', 'norm/bias', 'D'),
  Row('lm_head.weight', 'heads/lm', 'V D'),
  Row(_GPT + 'ln_1.weight', 'layers/{}/norm_attention/scale', 'D'),
  Row(_GPT + 'ln_1.bias', 'layers/{}/norm_attention/bias', 'D'),
  Row(_GPT + 'ln_2.weight', 'layers/{}/norm_mlp/scale', 'D'),
  Row(_GPT + 'ln_2.bias', 'layers/{}/norm_mlp/bias', 'D'),
  Row(_GPT + 'mlp.c_fc.bias', 'layers/{}/mlp/up_bias', 'F'),
  Row(_GPT + 'mlp.c_proj.bias', 'layers/{}/mlp/down_bias', 'D'),
)
_QKV = 'layers/{}/attention/query|key|value'
_QKV_BIAS = 'layers/{}/attention/query_bias|key_bias|value_bias'
GPT2_ROWS = (
  *_GPT_ROWS,
  Row(_GPT + 'attn.c_attn.weight', _QKV, 'D HK|GK|GK'),
  Row(_GPT + 'attn.c_attn.bias', _QKV_BIAS, 'HK|GK|GK'),
  Row(_GPT + 'attn.c_proj.weight', 'layers/{}/attention/out', 'HK D'),
  Row(_GPT + 'attn.c_proj.bias', 'layers/{}/attention/out_bias', 'D'),
  Row(_GPT + 'mlp.c_fc.weight', 'layers/{}/mlp/up', 'D F'),
  Row(_GPT + 'mlp.c_proj.weight', 'layers/{}/mlp/down', 'F D'),
)
_NEO = _GPT + 'attn.attention.'
NEO_ROWS = (
  *_GPT_ROWS,
  Row(_NEO + 'q_proj.weight', 'layers/{}/attention/query', 'HK D'),
  Row(_NEO + 'k_proj.weight', 'layers/{}/attention/key', 'GK D'),
  Row(_NEO + 'v_proj.weight', 'layers/{}/attention/value', 'GK D'),
  Row(_NEO + 'out_proj.weight', 'layers/{}/attention/out', 'D HK'),
  Row(_NEO + 'out_proj.bias', 'layers/{}/attention/out_bias', 'D'),
  Row(_GPT + 'mlp.c_fc.weight', 'layers/{}/mlp/up', 'F D'),
  Row(_GPT + 'mlp.c_proj.weight', 'layers/{}/mlp/down', 'D F'),
)
# Tensors of older files that hold what follows from the config.
BUFFERS = (
  '*.rotary_emb.inv_freq',
  'transformer.h.*.attn.bias',
  'transformer.h.*.attn.masked_bias',
  'transformer.h.*.attn.attention.bias',
  'transformer.h.*.attn.attention.masked_bias',
)


def _sizes(
  vocab: int, embed: int, mlp: int, layers: int, heads: int, kv: int, head: int
) -> tuple[Part, ...]:
  return (
    same('vocab_size', 'vocab', vocab),
    same('hidden_size', 'embed', embed),
    same('intermediate_size', 'mlp', mlp),
    depth('num_hidden_layers', layers),
    same('num_attention_heads', 'heads', heads),
    same('num_key_value_heads', 'kv_heads', kv, null=0),
    same('head_dim', 'head', head, null=0),
    same('rms_norm_eps', 'norm_epsilon', 1e-6),
  )


_SILU = activation('hidden_act', 'silu', {'gelu_tanh': 'gelu_pytorch_tanh'})
_GELU = activation(
  'hidden_activation', 'gelu_pytorch_tanh', {'gelu_tanh': 'gelu_pytorch_tanh'}
)
_NEW = activation('activation_function', 'gelu_new', {'gelu_tanh': 'gelu_new'})
_UNTIED = same('tie_word_embeddings', 'tied', False)
_TIED = same('tie_word_embeddings', 'tied', True)
_GEMMA = (_GELU, BIAS, SCALAR, only('use_bidirectional_attention', False), _TIED)
_DROPOUTS = ('resid_pdrop', 'embd_pdrop', 'attn_pdrop')
_NEO_DROPOUTS = ('resid_dropout', 'embed_dropout')
_SUMMARY = ('type', 'use_proj', 'activation', 'proj_to_labels', 'first_dropout')

FAMILIES = {
  'llama': Family(
    'LlamaForCausalLM',
    presets.LLAMA,
    (
      *_sizes(32000, 4096, 11008, 32, 32, 0, 0),
      *(_SILU, BIAS, same('mlp_bias', 'mlp_bias', False), rotary(2048), _UNTIED),
    ),
    LLAMA_ROWS,
  ),
  'mistral': Family(
    'MistralForCausalLM',
    presets.MISTRAL,
    (
      *_sizes(32000, 4096, 14336, 32, 32, 8, 0),
      *(_SILU, always_sliding(32, 4096), rotary(131072), _UNTIED),
    ),
    LLAMA_ROWS,
  ),
  'qwen2': Family(
    'Qwen2ForCausalLM',
    presets.QWEN2,
    (
      *_sizes(151936, 4096, 22016, 32, 32, 32, 0),
      *(_SILU, late_sliding(32, 28), rotary(32768), _UNTIED, only('use_mrope', False)),
    ),
    LLAMA_ROWS,
  ),
  'qwen3': Family(
    'Qwen3ForCausalLM',
    presets.QWEN3,
    (
      *_sizes(151936, 4096, 22016, 32, 32, 32, 128),
      *(_SILU, BIAS, late_sliding(32, 28), rotary(32768), _UNTIED),
    ),
    LLAMA_ROWS,
  ),
  'gemma2': Family(
    'Gemma2ForCausalLM',
    presets.GEMMA2,
    (
      *_sizes(256000, 2304, 9216, 26, 8, 4, 256),
      *(*_GEMMA, every_nth_global(26, 2), rotary(8192)),
      softcap('attn_logit_softcapping', 'attention_softcap', 50.0),
      softcap('final_logit_softcapping', 'final_softcap', 30.0),
    ),
    GEMMA_ROWS,
    frozenset({'hidden_act'}),  # Of older files; hidden_activation counts.
  ),
  'gemma3_text': Family(
    'Gemma3ForCausalLM',
    presets.GEMMA3,
    (
      *_sizes(262208, 2304, 9216, 26, 8, 4, 256),
      *(*_GEMMA, every_nth_global(26, 6), TWO_ROTARIES),
      softcap('attn_logit_softcapping', 'attention_softcap', None),
      softcap('final_logit_softcapping', 'final_softcap', None),
    ),
    GEMMA_ROWS,
    frozenset({'hidden_act'}),
  ),
  'gpt2': Family(
    'GPT2LMHeadModel',
    presets.GPT,
    (
      same('vocab_size', 'vocab', 50257),
      same('n_positions', 'length', 1024),
      same('n_embd', 'embed', 768),
      depth('n_layer', 12),
      same('n_head', 'heads', 12),
      same('n_inner', 'mlp', 0),
      same('layer_norm_epsilon', 'norm_epsilon', 1e-5),
      unscaled('scale_attn_weights'),
      *(_NEW, _TIED, only('scale_attn_by_inverse_layer_idx', False)),
    ),
    GPT2_ROWS,
    frozenset(
      {
        *('n_ctx', 'reorder_and_upcast_attn', *_DROPOUTS),
        *(f'summary_{name}' for name in _SUMMARY),
      }
    ),
  ),
  'gpt_neo': Family(
    'GPTNeoForCausalLM',
    presets.NEO,
    (
      same('vocab_size', 'vocab', 50257),
      same('max_position_embeddings', 'length', 2048),
      same('hidden_size', 'embed', 2048),
      depth('num_layers', 24),
      same('num_heads', 'heads', 16),
      same('intermediate_size', 'mlp', 0),
      same('layer_norm_epsilon', 'norm_epsilon', 1e-5),
      *(_NEW, _TIED, NEO_KINDS),
    ),
    NEO_ROWS,
    frozenset(
      {*_NEO_DROPOUTS, *(f'summary_{name}' for name in _SUMMARY)},
    ),
  ),
}
