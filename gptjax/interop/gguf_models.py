"""What the metadata and tensors of a GGUF file mean here: Llama's and GPT-2's shapes.

Llama's queries and keys have the halves of a head interleaved: letters J P, not P J.
Mistral without a window is a Llama there too. Llama 3's scaling is no metadata, but a
tensor of divisors of the frequencies.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from gptjax.interop.config import canonical
from gptjax.interop.gguf import File
from gptjax.interop.parts import Config, Part, Told, among, depth, get, only, same
from gptjax.interop.rotary import write_scaling
from gptjax.interop.tensors import Row, Tensor
from gptjax.models import presets, rope
from gptjax.models.presets import Preset
from gptjax.models.settings import Settings, make_settings
from gptjax.words import Mistake

FREQUENCIES = 'rope_freqs.weight'  # Read with the settings.
# Published scalings (theirs says only the divisors): factor, trained length.
_LLAMA3 = ((8.0, 8192), (32.0, 8192))


class Shape(NamedTuple):
  """What general.architecture stands for; keys of parts are without its name."""

  style: Preset
  parts: tuple[Part, ...]
  rows: tuple[Row, ...]
  preferred: str  # The model_type of transformers that is the same.


_OUTER = (
  Row('token_embd.weight', 'embed/tokens', 'V D'),
  Row('output_norm.weight', 'norm/scale', 'D'),
  Row('output.weight', 'heads/lm', 'V D'),
)
_NORMS = (
  Row('blk.{}.attn_norm.weight', 'layers/{}/norm_attention/scale', 'D'),
  Row('blk.{}.ffn_norm.weight', 'layers/{}/norm_mlp/scale', 'D'),
)
_PRODUCTS = (
  Row('blk.{}.attn_output.weight', 'layers/{}/attention/out', 'D HK'),
  Row('blk.{}.attn_output.bias', 'layers/{}/attention/out_bias', 'D'),
  Row('blk.{}.ffn_up.weight', 'layers/{}/mlp/up', 'F D'),
  Row('blk.{}.ffn_up.bias', 'layers/{}/mlp/up_bias', 'F'),
  Row('blk.{}.ffn_down.weight', 'layers/{}/mlp/down', 'D F'),
  Row('blk.{}.ffn_down.bias', 'layers/{}/mlp/down_bias', 'D'),
)
LLAMA_ROWS = (
  *_OUTER,
  _NORMS[0],
  Row('blk.{}.attn_q.weight', 'layers/{}/attention/query', 'HJP D'),
  Row('blk.{}.attn_k.weight', 'layers/{}/attention/key', 'GJP D'),
  Row('blk.{}.attn_v.weight', 'layers/{}/attention/value', 'GK D'),
  Row('blk.{}.attn_q.bias', 'layers/{}/attention/query_bias', 'HJP'),
  Row('blk.{}.attn_k.bias', 'layers/{}/attention/key_bias', 'GJP'),
  Row('blk.{}.attn_v.bias', 'layers/{}/attention/value_bias', 'GK'),
  _NORMS[1],
  Row('blk.{}.ffn_gate.weight', 'layers/{}/mlp/gate', 'F D'),
  Row('blk.{}.ffn_gate.bias', 'layers/{}/mlp/gate_bias', 'F'),
  *_PRODUCTS,
)
_QKV = 'layers/{}/attention/query|key|value'
_QKV_BIAS = 'layers/{}/attention/query_bias|key_bias|value_bias'
GPT2_ROWS = (
  *_OUTER,
  Row('position_embd.weight', 'embed/positions', 'S D'),
  Row('output_norm.bias', 'norm/bias', 'D'),
  *_NORMS,
  Row('blk.{}.attn_norm.bias', 'layers/{}/norm_attention/bias', 'D'),
  Row('blk.{}.ffn_norm.bias', 'layers/{}/norm_mlp/bias', 'D'),
  Row('blk.{}.attn_qkv.weight', _QKV, 'HK|GK|GK D'),
  Row('blk.{}.attn_qkv.bias', _QKV_BIAS, 'HK|GK|GK'),
  *_PRODUCTS,
)


def _read_head(config: Config) -> Told:
  given = [config[key] for key in _HEAD_KEYS if key in config]
  if any(size != given[0] for size in given):
    raise Mistake(f'{", ".join(_HEAD_KEYS)} differ: {given}.')
  return {'head': given[0] if given else 0}


_HEAD_KEYS = ('attention.key_length', 'attention.value_length', 'rope.dimension_count')
_HEAD = Part(_HEAD_KEYS, _read_head, lambda c: dict.fromkeys(_HEAD_KEYS, c.head))


def _read_rotary(config: Config) -> Told:
  kind = get(config, 'rope.scaling.type', 'none')
  factor = get(config, 'rope.scaling.factor', 1.0)
  length = get(config, 'rope.scaling.original_context_length', 0)
  told: Told = {'theta': get(config, 'rope.freq_base', 1e4), 'rope': None}
  if kind == 'linear':
    told['rope'] = dict(kind='linear', factor=factor)
  elif kind == 'yarn' and length:
    told['rope'] = dict(kind='yarn', factor=factor, length=length)
  else:
    among(kind, ('none', 'linear', 'yarn'), 'rope.scaling.type')
  return told


def _write_rotary(c: Settings) -> Told:
  options, (theta, _) = dict(c.rope or {}), write_scaling(c)
  told: Told = {'rope.freq_base': float(theta)}
  kind = options.pop('kind', 'none')
  if kind in ('linear', 'yarn'):
    told['rope.scaling.type'] = kind
    told['rope.scaling.factor'] = float(options['factor'])
  if kind == 'yarn':
    told['rope.scaling.original_context_length'] = int(options['length'])
  return told


_ROTARY = Part(
  (
    'rope.freq_base',
    'rope.scaling.type',
    'rope.scaling.factor',
    'rope.scaling.original_context_length',
    'rope.scaling.finetuned',
  ),
  _read_rotary,
  _write_rotary,
)
_SIZES = (
  depth('block_count', 0),
  same('context_length', 'length', 0),
  same('embedding_length', 'embed', 0),
  same('feed_forward_length', 'mlp', 0),
  same('attention.head_count', 'heads', 0),
)
SHAPES = {
  'llama': Shape(
    presets.LLAMA,
    (
      *_SIZES,
      same('attention.head_count_kv', 'kv_heads', 0),
      same('attention.layer_norm_rms_epsilon', 'norm_epsilon', 1e-5),
      *(_HEAD, _ROTARY, only('expert_count', 0), only('expert_used_count', 0)),
    ),
    LLAMA_ROWS,
    'llama',
  ),
  'gpt2': Shape(
    presets.GPT,
    (*_SIZES, same('attention.layer_norm_epsilon', 'norm_epsilon', 1e-5)),
    GPT2_ROWS,
    'gpt2',
  ),
}


def read_settings(file: File) -> tuple[str, Settings]:
  """(architecture, our settings) of a file.

  Raises:
    Mistake: an architecture or a key that is not known here.
  """
  metadata = file.metadata
  name = metadata.get('general.architecture')
  shape = SHAPES[among(name, SHAPES, 'general.architecture')]
  prefix = f'{name}.'
  own = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
  vocab = own.pop('vocab_size', None)
  told: dict[str, Any] = dict(shape.style)
  known = {key for part in shape.parts for key in part.keys}
  for key in own:
    if key not in known:
      raise Mistake(
        f'{prefix}{key}={own[key]!r} is not known here: it may change what '
        'the model computes.'
      )
  for part in _SIZES:
    if part.keys[0] not in own:
      raise Mistake(f'{prefix}{part.keys[0]} is missing.')
  for part in shape.parts:
    told |= part.read(own)
  table = file.tensors.get('token_embd.weight')
  if table is None:
    raise Mistake('tensor token_embd.weight is missing.')
  if vocab is not None and vocab != table.shape[0]:
    raise Mistake(
      f'{prefix}vocab_size={vocab}, but token_embd has {table.shape[0]} rows.'
    )
  told['vocab'] = table.shape[0]
  told['tied'] = 'output.weight' not in file.tensors
  if name == 'llama':
    for key, tensor in _BIASES.items():
      told[key] = f'blk.0.{tensor}.bias' in file.tensors
  c = make_settings(None, told)
  if FREQUENCIES in file.tensors:
    c = dataclasses.replace(c, rope=_find_scaling(c, file.tensors[FREQUENCIES].read()))
  return str(name), c


_BIASES = {'qkv_bias': 'attn_q', 'out_bias': 'attn_output', 'mlp_bias': 'ffn_up'}


def _divisors(c: Settings) -> np.ndarray:
  """By what the scaling divides the frequencies of each pair, float32."""
  plain, _ = rope.frequencies(c.head, c.theta)
  scaled, _ = rope.frequencies(c.head, c.theta, c.rope)
  return (plain / scaled).astype(np.float32)


def _find_scaling(c: Settings, divisors: np.ndarray) -> dict[str, Any]:
  for factor, length in _LLAMA3:
    found = dict(kind='llama3', factor=factor, length=length, low=1.0, high=4.0)
    mine = _divisors(dataclasses.replace(c, rope=found))
    if mine.shape == divisors.shape and np.allclose(mine, divisors, rtol=1e-4):
      return found
  raise Mistake(f'tensor {FREQUENCIES} holds a scaling that is not known here.')


def choose_shape(c: Settings) -> str:
  """The architecture whose models compute what these settings say.

  Raises:
    Mistake: neither does, with what is between the settings and the nearest.
  """
  differ = {name: _differences(name, c) for name in SHAPES}
  for name, found in differ.items():
    if not found:
      return name
  near = min(differ, key=lambda name: len(differ[name]))
  raise Mistake(
    f'GGUF is written for the shapes of {" and ".join(SHAPES)} only: {near}, the '
    f'nearest, has no {", ".join(differ[near])}. --target=hf:DIR writes other families.'
  )


def _differences(name: str, c: Settings) -> list[str]:
  shape = SHAPES[name]
  told: dict[str, Any] = dict(shape.style)
  written = {k: v for part in shape.parts for k, v in part.write(c).items()}
  for part in shape.parts:
    told |= part.read(written)
  flags = {
    'tied': c.tied,
    **({k: getattr(c, k) for k in _BIASES} if name == 'llama' else {}),
  }
  if name == 'llama' and (c.rope or {}).get('kind') == 'llama3':
    flags['rope'] = c.rope
  try:
    back = make_settings(None, {**told, **flags, 'vocab': c.vocab})
  except Mistake as mistake:
    return [str(mistake)]
  mine, theirs = canonical(c), canonical(back)
  return [f'{key}={mine[key]!r}' for key in mine if mine[key] != theirs[key]]


def write_metadata(name: str, c: Settings) -> dict[str, Any]:
  """The keys of the architecture."""
  told = {k: v for part in SHAPES[name].parts for k, v in part.write(c).items()}
  told['vocab_size'] = c.rows or c.vocab
  return {f'{name}.{key}': value for key, value in told.items()}


def extra_tensors(c: Settings) -> list[Tensor]:
  """The divisors of the frequencies, where Llama 3's scaling is in force."""
  if (c.rope or {}).get('kind') != 'llama3':
    return []
  divisors = _divisors(c)
  return [Tensor(FREQUENCIES, divisors.shape, lambda: divisors)]
