"""Adapters of ours as `peft` loads them over the model of transformers.

Of each product with an adapter peft holds lora_A [rank, inputs] and lora_B [outputs,
rank]. Where one tensor of theirs joins several products (GPT-2's queries, keys and
values), its adapter joins theirs: the ranks add up, and B has a block for each.

Source: Hu et al. 2021 (arXiv 2106.09685); the files as peft 0.21 writes them.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from gptjax import tree
from gptjax.interop import safetensors
from gptjax.interop.families import FAMILIES
from gptjax.interop.tensors import LEAVES, Row, Tensor, places
from gptjax.models.linear import Lora
from gptjax.models.lora import is_adapted
from gptjax.words import Mistake, Params

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'


class _Adapter(NamedTuple):
  """Of one product of one layer."""

  a: np.ndarray  # [rank, inputs]
  b: np.ndarray  # [outputs, rank]


def write_adapter(
  folder: epath.Path,
  whole: Params,
  kind: str,
  base: str,
  dropout: float,
  dtype: str = 'float32',
) -> None:
  """Writes adapter_config.json and adapter_model.safetensors.

  Args:
    folder: where to.
    whole: the weights, in them the adapters as `Lora`.
    kind: the model_type of the model that they stand over.
    base: the folder or the name of that model, for peft to find it.
    dropout: of the adapters' inputs.
    dtype: of the file.

  Raises:
    Mistake: there are no adapters.
  """
  found = _adapters(whole, FAMILIES[kind].rows)
  if not found:
    raise Mistake('there are no adapters to write.')
  ranks = {name: _rank(own) for name, (_, own, _) in found.items()}
  rank = min(ranks.values())
  scale = next(iter(found.values()))[2]
  # A module's own rank and alpha where they differ; their quotient is the scale.
  wide = {name: n for name, n in ranks.items() if n != rank}
  config = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base,
    'inference_mode': True,
    'r': rank,
    'lora_alpha': scale * rank,
    'lora_dropout': dropout,
    'target_modules': _targets(found, whole, FAMILIES[kind].rows),
    'rank_pattern': wide,
    'alpha_pattern': {name: scale * n for name, n in wide.items()},
    'bias': 'none',
    'fan_in_fan_out': any(_inputs_first(row) for row, _, _ in found.values()),
    'modules_to_save': None,
    'use_rslora': False,
  }
  (folder / CONFIG).write_text(json.dumps(config, indent=2) + '\n')
  tensors = []
  for name, (row, own, _) in found.items():
    a, b = _joined(row, own)
    for part, array in (('lora_A', a), ('lora_B', b)):
      full = f'base_model.model.{name}.{part}.weight'
      tensors.append(Tensor(full, array.shape, lambda array=array: array))
  safetensors.write(folder / WEIGHTS, tensors, dtype)


_Found = dict[str, tuple[Row, dict[int, _Adapter], float]]  # By module.


def _adapters(whole: Params, rows: Sequence[Row]) -> _Found:
  """Of each of their modules its row, the adapters of its parts, and their scale."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(whole, is_leaf=is_adapted)
  held: dict[str, Lora] = {
    '/'.join(str(key.key) for key in path): leaf
    for path, leaf in leaves
    if is_adapted(leaf)
  }
  shapes = tree.nested({path: leaf.w for path, leaf in held.items()})
  found: _Found = {}
  for path, layers in places(rows, shapes).items():
    leaf = held[path]
    for number, place in enumerate(layers):
      rank = leaf.a.shape[-1]
      a = np.asarray(leaf.a[number], np.float32).reshape(-1, rank).T
      b = np.asarray(leaf.b[number], np.float32).reshape(rank, -1).T
      name = place.name.removesuffix('.weight')
      _, own, _ = found.setdefault(name, (place.row, {}, leaf.scale))
      own[place.part] = _Adapter(a, b)
  return found


def _rank(own: dict[int, _Adapter]) -> int:
  return sum(len(adapter.a) for adapter in own.values())


def _joined(row: Row, own: dict[int, _Adapter]) -> tuple[np.ndarray, np.ndarray]:
  """A [ranks, inputs] and B [outputs of all parts, ranks] of a module."""
  some = next(iter(own.values()))
  outputs = {part: len(adapter.b) for part, adapter in own.items()}
  sizes = [outputs.get(part, len(some.b)) for part in range(len(row.parts))]
  a = np.concatenate([own[part].a for part in sorted(own)])
  b = np.zeros((sum(sizes), len(a)), np.float32)
  column = 0
  for part in sorted(own):
    top, rank = sum(sizes[:part]), len(own[part].a)
    b[top : top + sizes[part], column : column + rank] = own[part].b
    column += rank
  return a, b


def _inputs_first(row: Row) -> bool:
  """Whether their tensor is [inputs, outputs], as GPT-2's."""
  leaf = LEAVES[row.leaves[0].replace('layers/{}/', '')]
  first = row.parts[0].split(' ')[0]
  return leaf.startswith(first)


def _targets(found: _Found, whole: Params, rows: Sequence[Row]) -> list[str]:
  """The modules' last names where all layers have adapters there, else all names."""
  short = sorted({name.rpartition('.')[2] for name in found})
  plain = jax.tree.map(
    lambda leaf: leaf.w if is_adapted(leaf) else leaf, whole, is_leaf=is_adapted
  )
  modules = {
    place.name.rpartition('.')[0]
    for layers in places(rows, plain).values()
    for place in layers
  }
  meant = {name for name in modules if name.rpartition('.')[2] in short}
  return short if meant == set(found) else sorted(found)
