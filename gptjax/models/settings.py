"""What a transformer can be told, with the presets' values and the config's on top."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gptjax import sharding
from gptjax.lookup import nearest
from gptjax.models import presets, rope
from gptjax.words import Mistake

ALLOWED = {
  'positions': ('rope', 'learned', 'sinusoidal', 'none'),
  'norm': ('rms', 'layer'),
  'activation': ('silu', 'gelu', 'gelu_tanh', 'relu', 'relu2'),
  'init': ('normal', 'fan_in'),
  'init_residual': ('scaled', 'same', 'zero'),
  'remat': ('none', 'full', 'dots', 'save_attention'),
  'dtype': ('auto', 'float32', 'bfloat16'),
}
KINDS = ('global', 'local')
OUTPUTS = ('lm', 'classes', 'values')


@dataclasses.dataclass(frozen=True)
class Settings:
  """Sizes and choices of a transformer; these are the keys of c.model."""

  vocab: int  # Ids of the tokenizer; the table is padded to a multiple of 128.
  layers: int
  embed: int  # Width D of the trunk.
  heads: int  # Query heads H.
  kv_heads: int = 0  # Key and value heads G; 0: as many as query heads.
  head: int = 0  # Size K of a head; 0: embed / heads.
  mlp: int = 0  # Width F of the MLP; 0: 4 embed.
  length: int = 1024  # Positions of a learned table; else the context trained for.
  rows: int = 0  # Of the token table, where a published model has more than ids.

  pattern: tuple[str, ...] = ('global',)  # Kinds of layer, repeated over the layers.
  window: int = 0  # Tokens that a local layer sees, its own included.
  causal: bool = True
  qk_norm: bool = False  # RMSNorm of every query and key head.
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  attention_scale: float = 0.0  # Of the scores; 0: 1 / sqrt(head).
  attention_softcap: float = 0.0  # 0: none. Else cap * tanh(scores / cap).
  final_softcap: float = 0.0  # The same for the logits.

  positions: str = 'rope'
  theta: float = 10_000.0  # Base of the rotation's wavelengths.
  local_theta: float = 0.0  # The same in local layers; 0: theta, scaled as it is.
  rope: Mapping[str, Any] | None = None  # Scaling: dict(kind='llama3', factor=8, ...).

  norm: str = 'rms'
  norm_bias: bool = False
  norm_offset: bool = False  # The scale is 1 + the weight.
  norm_epsilon: float = 1e-5
  post_norms: bool = False  # Also on what attention and MLP give back.
  activation: str = 'silu'
  gated: bool = True

  embed_scale: bool = False  # Embeddings times sqrt(embed).
  tied: bool = True  # The table of tokens is the head's weight too.
  kinds: int = 0  # Token types of `batch['kinds']`.
  outputs: tuple[str, ...] = ('lm',)  # Heads on the trunk: lm, classes, values.
  classes: int = 0

  dropout: float = 0.0  # Of the embedding and of what attention and MLP give back.
  attention_dropout: float = 0.0  # Of the probabilities; takes the plain form.
  init: str = 'normal'  # normal: init_std; fan_in: 1 / sqrt(inputs).
  init_std: float = 0.02
  init_residual: str = 'scaled'  # Weights into the trunk: over sqrt(2 layers), or zero.

  remat: str = 'none'  # What the backward pass computes again.
  scan: bool | None = None  # None: unrolled on a CPU, scanned elsewhere.
  dtype: str = 'auto'  # Of activations: bfloat16 on TPU and GPU, float32 on a CPU.

  @property
  def padded(self) -> int:
    """Rows V of the token table."""
    return -(-max(self.vocab, self.rows) // 128) * 128

  @property
  def scale(self) -> float:
    """Of the attention scores."""
    return self.attention_scale or self.head**-0.5

  @property
  def compute(self) -> Any:
    """Dtype of activations on the platform at hand."""
    if self.dtype == 'auto':
      return jnp.float32 if sharding.platform() == 'cpu' else jnp.bfloat16
    return jnp.dtype(self.dtype)

  @property
  def scanned(self) -> bool:
    """Whether stacked layers are scanned on the platform at hand."""
    return sharding.platform() != 'cpu' if self.scan is None else self.scan

  def inner(self, inputs: int) -> Callable[..., jax.Array]:
    """Initializer of a weight with so many inputs."""
    std = self.init_std if self.init == 'normal' else inputs**-0.5
    return jax.nn.initializers.normal(std)

  def outer(self, inputs: int) -> Callable[..., jax.Array]:
    """Initializer of a weight that writes to the trunk."""
    if self.init_residual == 'zero':
      return jax.nn.initializers.zeros
    std = self.init_std if self.init == 'normal' else inputs**-0.5
    deep = (2 * self.layers) ** -0.5 if self.init_residual == 'scaled' else 1.0
    return jax.nn.initializers.normal(std * deep)


def make_settings(preset: str | None, given: Mapping[str, Any]) -> Settings:
  """The preset's settings with the given ones on top.

  Raises:
    Mistake: an unknown preset, key or choice, a size that is missing, or sizes that do
      not fit together.
  """
  if preset is not None and preset not in presets.PRESETS:
    raise Mistake(f'c.model.preset: no {preset!r}: {nearest(preset, presets.PRESETS)}')
  values = {**presets.PRESETS.get(preset or '', {}), **given}
  fields = {f.name: f for f in dataclasses.fields(Settings)}
  for key in values:
    if key not in fields:
      raise Mistake(f'c.model: transformer takes no {key!r}: {nearest(key, fields)}')
  missing = [
    n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values
  ]
  if missing:
    raise Mistake(f'c.model: transformer needs {", ".join(missing)}, or a preset.')
  for key in ('pattern', 'outputs'):
    if isinstance(values.get(key), str):
      values[key] = values[key].split(',')
  for key in ('pattern', 'outputs'):
    if key in values:
      values[key] = tuple(values[key])
  c = Settings(**values)
  c = dataclasses.replace(
    c,
    kv_heads=c.kv_heads or c.heads,
    head=c.head or c.embed // max(c.heads, 1),
    mlp=c.mlp or 4 * c.embed,
  )
  _check(c, 'head' in values and bool(values['head']))
  return c


def _check(c: Settings, head_given: bool) -> None:
  def demand(fits: bool, line: str) -> None:
    if not fits:
      raise Mistake(f'c.model: {line}')

  for name in ('vocab', 'layers', 'embed', 'heads', 'kv_heads', 'head', 'mlp'):
    demand(getattr(c, name) >= 1, f'{name}={getattr(c, name)}: at least 1.')
  for name, allowed in ALLOWED.items():
    value = getattr(c, name)
    demand(value in allowed, f'{name}={value!r}: {nearest(str(value), allowed)}')
  for key, allowed in (('pattern', KINDS), ('outputs', OUTPUTS)):
    for kind in getattr(c, key):
      demand(kind in allowed, f'{key} has {kind!r}: {nearest(str(kind), allowed)}')
  demand(bool(c.pattern), 'pattern is empty.')
  demand(
    head_given or c.embed % c.heads == 0,
    f'embed={c.embed} is no multiple of heads={c.heads}; give head, the size of one.',
  )
  demand(
    c.heads % c.kv_heads == 0,
    f'heads={c.heads} is no multiple of kv_heads={c.kv_heads}.',
  )
  local = 'local' in c.pattern
  demand(c.window >= 1 or not local, 'pattern has local layers, which need a window.')
  rotary = c.positions == 'rope'
  demand(c.head % 2 == 0 or not rotary, f'head={c.head} is odd; rope turns pairs.')
  even = c.embed % 2 == 0 or c.positions != 'sinusoidal'
  demand(even, f'embed={c.embed} is odd; sinusoidal positions come in pairs.')
  demand(c.classes >= 1 or 'classes' not in c.outputs, 'outputs has classes: how many?')
  for name in ('dropout', 'attention_dropout'):
    value = getattr(c, name)
    demand(0 <= value < 1, f'{name}={value}: at least 0 and below 1.')
  if c.rope:
    rope.check(c.rope)
