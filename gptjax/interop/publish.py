"""A model written for other tools: a folder for transformers, or a GGUF file."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from gptjax import tree
from gptjax.interop import (
  card,
  config,
  gguf,
  gguf_models,
  gguf_tokenizer,
  peft,
  safetensors,
  tensors,
  tokenizer_json,
)
from gptjax.interop.families import FAMILIES
from gptjax.models.settings import Settings
from gptjax.words import Mistake, Params, Tokenizer

DTYPES = (*tensors.DTYPES, 'q8_0')


class Model(NamedTuple):
  """What is written, without the weights."""

  name: str  # Where it comes from.
  settings: Settings  # Their `length` is the context.
  tokenizer: Tokenizer
  template: str  # Of Jinja; '' for none.
  family: str  # The model_type that it had, if any.
  special: Mapping[
    str, str
  ]  # bos_token, eos_token, pad_token: names of control tokens.
  stops: Sequence[int]  # Ids that end an answer.
  generation: Mapping[str, Any]  # Further keys of generation_config.json.
  about: Mapping[str, Any]  # What the model card says, by name.


def check_folder(model: Model, dtype: str) -> str:
  """The model_type that a folder will say.

  Raises:
    Mistake: no family or no tokenizer.json says what the model does, or no such dtype.
  """
  if dtype not in tensors.DTYPES:
    raise Mistake(f'--dtype={dtype}: of hf:DIR are {", ".join(tensors.DTYPES)}.')
  kind = config.choose_family(_for_others(model.settings), model.family)
  tokenizer_json.spec_of(model.tokenizer)
  return kind


def write_folder(folder: epath.Path, model: Model, weights: Params, dtype: str) -> None:
  """Writes weights, config, tokenizer, template, generation config and model card.

  Raises:
    Mistake: as of `check_folder`.
  """
  kind = check_folder(model, dtype)
  c = _for_others(model.settings)
  rows = FAMILIES[kind].rows
  safetensors.write_folder(folder, tensors.tensors(rows, weights, c), dtype)
  ids = {f'{key}_id': _id(model, name) for key, name in model.special.items()}
  said = {**config.write_config(kind, c), **ids, 'torch_dtype': dtype}
  _write(folder / config.FILE, {**said, 'use_cache': True})
  stops = [*model.stops]
  ends = {'eos_token_id': stops if len(stops) > 1 else stops[0]} if stops else {}
  _write(folder / 'generation_config.json', {**ids, **model.generation, **ends})
  write_tokenizer(folder, model)
  text = card.card(model.name, model.about, tree.count(weights), dtype, model.template)
  (folder / 'README.md').write_text(text)


def write_adapter(
  folder: epath.Path,
  model: Model,
  weights: Params,
  base: str,
  dropout: float,
  dtype: str,
) -> None:
  """Writes adapters for peft, with the tokenizer that they were trained with.

  Args:
    folder: where to.
    model: the whole of it.
    weights: with the adapters as Lora.
    base: what they stand over, as peft is to find it.
    dropout: of their inputs.
    dtype: of the file.

  Raises:
    Mistake: as of `check_folder`.
  """
  kind = check_folder(model, dtype)
  peft.write_adapter(folder, weights, kind, base, dropout, dtype)
  write_tokenizer(folder, model)


def write_tokenizer(folder: epath.Path, model: Model) -> None:
  """Writes tokenizer.json, what transformers wants beside it, and the template."""
  spec = tokenizer_json.spec_of(model.tokenizer)
  text = json.dumps(spec, ensure_ascii=False, indent=1)
  (folder / tokenizer_json.FILE).write_text(text + '\n')
  told = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'clean_up_tokenization_spaces': False,
    'model_max_length': model.settings.length,
    **model.special,
  }
  _write(folder / tokenizer_json.SETTINGS, told)
  if model.template:
    (folder / 'chat_template.jinja').write_text(model.template)


def check_gguf(model: Model, dtype: str) -> str:
  """The architecture that a GGUF file will say.

  Raises:
    Mistake: GGUF cannot say what the model or its tokenizer does, or no such dtype.
  """
  if dtype not in gguf.WRITTEN:
    raise Mistake(f'--dtype={dtype}: of gguf:FILE are {", ".join(gguf.WRITTEN)}.')
  c = _for_others(model.settings)
  gguf_tokenizer.write(model.tokenizer, c.rows or c.vocab)
  return gguf_models.choose_shape(c)


def write_gguf(path: epath.Path, model: Model, weights: Params, dtype: str) -> None:
  """Writes one file with weights, tokenizer and template.

  Raises:
    Mistake: as of `check_gguf`.
  """
  name, c = check_gguf(model, dtype), _for_others(model.settings)
  kinds = {'float32': 0, 'float16': 1, 'q8_0': 7, 'bfloat16': 32}  # Of the format.
  head = {
    'general.architecture': name,
    'general.type': 'model',
    'general.name': model.name,
    'general.file_type': kinds[dtype],
    'general.quantization_version': 2,
  }
  rows = gguf_models.SHAPES[name].rows
  told = gguf_tokenizer.write(model.tokenizer, c.rows or c.vocab)
  for key, token in model.special.items():
    short = {'unk_token': 'unknown', 'pad_token': 'padding'}.get(key, key[:3])
    told[f'tokenizer.ggml.{short}_token_id'] = _id(model, token)
  ends = model.tokenizer.controls.get(model.special.get('eos_token', ''))
  for stop in [stop for stop in model.stops if stop != ends][:1]:
    told['tokenizer.ggml.eot_token_id'] = int(stop)
  if model.template:
    told[gguf_tokenizer.TEMPLATE] = model.template
  found = [*gguf_models.extra_tensors(c), *tensors.tensors(rows, weights, c)]
  metadata = {**head, **gguf_models.write_metadata(name, c), **told}
  gguf.write(path, metadata, found, dtype)


def _for_others(c: Settings) -> Settings:
  """The settings without padding of the vocabulary."""
  if c.outputs != ('lm',):
    others = ', '.join(o for o in c.outputs if o != 'lm')
    raise Mistake(
      f'the model has the heads {others}: other tools take language models.'
    )
  return dataclasses.replace(c, rows=c.rows or c.vocab)


def _id(model: Model, name: str) -> int:
  return model.tokenizer.controls[name]


def _write(path: epath.Path, told: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + '\n')
