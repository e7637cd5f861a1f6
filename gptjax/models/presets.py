"""Families of transformers, and models with their published sizes.

A family gives a style and leaves the sizes to the config; any key of the config
overrides a preset's. Sizes are those of the weights' own configuration files.
"""

from typing import Any

Preset = dict[str, Any]

GPT: Preset = dict(  # Radford et al. 2019.
  positions='learned', norm='layer', norm_bias=True, activation='gelu_tanh',
  gated=False, qkv_bias=True, out_bias=True, mlp_bias=True, tied=True,
)  # fmt: skip
NEO: Preset = dict(  # Black et al. 2021.
  GPT, qkv_bias=False, attention_scale=1.0, pattern=('global', 'local'), window=256,
)  # fmt: skip
LLAMA: Preset = dict(  # Touvron et al. 2023, Grattafiori et al. 2024.
  positions='rope', norm='rms', activation='silu', gated=True, tied=True,
)  # fmt: skip
MISTRAL: Preset = dict(LLAMA, pattern=('local',), window=4096, tied=False)
QWEN2: Preset = dict(LLAMA, qkv_bias=True, theta=1e6, norm_epsilon=1e-6)
QWEN3: Preset = dict(LLAMA, qk_norm=True, theta=1e6, norm_epsilon=1e-6)
GEMMA2: Preset = dict(
  positions='rope', norm='rms', norm_offset=True, norm_epsilon=1e-6, post_norms=True,
  activation='gelu_tanh', gated=True, embed_scale=True, tied=True,
  pattern=('local', 'global'), window=4096, attention_softcap=50.0, final_softcap=30.0,
)  # fmt: skip
GEMMA3: Preset = dict(
  GEMMA2, qk_norm=True, pattern=('local',) * 5 + ('global',), window=512, theta=1e6,
  local_theta=1e4, attention_softcap=0.0, final_softcap=0.0,
)  # fmt: skip


def _gpt(layers: int, embed: int, heads: int) -> Preset:
  sizes = dict(layers=layers, embed=embed, heads=heads)
  return dict(GPT, vocab=50257, length=1024, **sizes)


def _neo(layers: int, embed: int, heads: int) -> Preset:
  sizes = dict(layers=layers, embed=embed, heads=heads)
  return dict(NEO, vocab=50257, length=2048, **sizes)


PRESETS: dict[str, Preset] = {
  'gpt': GPT,
  'neo': NEO,
  'llama': LLAMA,
  'mistral': MISTRAL,
  'qwen2': QWEN2,
  'qwen3': QWEN3,
  'gemma2': GEMMA2,
  'gemma3': GEMMA3,
  'gpt2': _gpt(12, 768, 12),
  'gpt2-medium': _gpt(24, 1024, 16),
  'gpt2-large': _gpt(36, 1280, 20),
  'gpt2-xl': _gpt(48, 1600, 25),
  'gpt-neo-125m': _neo(12, 768, 12),
  'gpt-neo-1.3b': _neo(24, 2048, 16),
  'gpt-neo-2.7b': _neo(32, 2560, 20),
  'smollm2-135m': dict(
    LLAMA, vocab=49152, layers=30, embed=576, heads=9, kv_heads=3, mlp=1536,
    theta=1e5, length=8192,
  ),
  'llama3-8b': dict(
    LLAMA, vocab=128256, layers=32, embed=4096, heads=32, kv_heads=8, mlp=14336,
    theta=5e5, length=8192, tied=False,
  ),
  'llama3.2-1b': dict(
    LLAMA, vocab=128256, layers=16, embed=2048, heads=32, kv_heads=8, mlp=8192,
    theta=5e5, length=131072, rope=dict(kind='llama3', factor=32.0, length=8192),
  ),
  'mistral-7b': dict(
    MISTRAL, vocab=32000, layers=32, embed=4096, heads=32, kv_heads=8, mlp=14336,
    length=32768,
  ),
  'qwen2.5-0.5b': dict(
    QWEN2, vocab=151936, layers=24, embed=896, heads=14, kv_heads=2, mlp=4864,
    length=32768,
  ),
  'qwen3-0.6b': dict(
    QWEN3, vocab=151936, layers=28, embed=1024, heads=16, kv_heads=8, head=128,
    mlp=3072, length=40960,
  ),
  'gemma2-2b': dict(
    GEMMA2, vocab=256000, layers=26, embed=2304, heads=8, kv_heads=4, head=256,
    mlp=9216, length=8192,
  ),
  'gemma3-1b': dict(
    GEMMA3, vocab=262144, layers=26, embed=1152, heads=4, kv_heads=1, head=256,
    mlp=6912, length=32768,
  ),
}  # fmt: skip
