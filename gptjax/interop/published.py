"""A published model: a folder of Hugging Face's or a GGUF file, read lazily."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from etils import epath

from gptjax.interop import (
  config,
  gguf,
  gguf_models,
  gguf_tokenizer,
  safetensors,
  tensors,
)
from gptjax.interop.families import BUFFERS, FAMILIES
from gptjax.interop.tensors import Stored
from gptjax.models.settings import Settings
from gptjax.tokenizers import hf
from gptjax.words import Mistake, Params, Tokenizer, Tree


class Published(NamedTuple):
  """What is said of a model; its tensors are read when `load` is called."""

  kind: str  # model_type of the family.
  settings: Settings
  tokenizer: Tokenizer
  template: str  # Its chat template of Jinja; '' if it has none.
  generation: dict[str, Any]  # Of generation_config.json.
  special: dict[str, str]  # bos_token, eos_token, pad_token, as they were called.
  license: str  # As it is called; '' if it is not said.
  dtype: str  # The one that holds all its weights exactly: float32 or narrower.
  load: Callable[[Tree], Params]  # Abstract weights with shardings -> weights, float32.


def read_gguf(path: epath.Path) -> Published:
  """A model of a GGUF file.

  Raises:
    Mistake: the file is damaged, or something in it is not known here.
  """
  file = gguf.read(path)
  name, c = _naming(path, gguf_models.read_settings, file)
  tokenizer = gguf_tokenizer.read(file.metadata, path)
  _check_sizes(path, c, tokenizer)
  shape = gguf_models.SHAPES[name]
  ignored = (gguf_models.FREQUENCIES,)

  def load(abstract: Tree) -> Params:
    return _naming(
      path, tensors.load, shape.rows, file.tensors, abstract, c, ignored=ignored
    )

  known = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}
  dtype = _widest(
    {known.get(t.dtype, 'float32') for t in file.tensors.values() if len(t.shape) > 1}
  )
  return Published(
    kind=shape.preferred,
    settings=c,
    tokenizer=tokenizer,
    template=str(file.metadata.get(gguf_tokenizer.TEMPLATE, '')),
    generation={},
    special=_special(tokenizer, gguf_tokenizer.special(file.metadata)),
    license=str(file.metadata.get('general.license', '')),
    dtype=dtype,
    load=load,
  )


def read_folder(folder: epath.Path) -> Published:
  """A model in a folder as `save_pretrained` of transformers writes it.

  Raises:
    Mistake: a file is missing or damaged, or something in one is not known here.
  """
  said = config.read_json(folder / config.FILE)
  kind, c = _naming(folder / config.FILE, config.read_config, said)
  stored = safetensors.read_folder(folder)
  stored = _named_alike(stored, kind)
  tokenizer, special = _read_tokenizer(folder, said)
  _check_sizes(folder, c, tokenizer)
  family, ignored = FAMILIES[kind], [*BUFFERS]
  if c.tied and 'lm_head.weight' in stored:
    ignored.append('lm_head.weight')

  def load(abstract: Tree) -> Params:
    if 'lm_head.weight' in ignored:
      _check_tied(folder, stored, family.rows[0].theirs)
    return _naming(
      folder, tensors.load, family.rows, stored, abstract, c, ignored=ignored
    )

  names = {short: long for long, short in safetensors.NAMES.items()}
  dtype = _widest({names.get(t.dtype, 'float32') for t in stored.values()})
  path = folder / 'generation_config.json'
  generation = config.read_json(path) if path.exists() else {}
  return Published(
    kind=kind,
    settings=c,
    tokenizer=tokenizer,
    template=_read_template(folder),
    generation=generation,
    special=_special(tokenizer, special),
    license=_read_license(folder),
    dtype=dtype,
    load=load,
  )


def fetch(name: str) -> epath.Path:
  """The folder of a model: itself, or a copy of what the hub has under that name.

  Raises:
    Mistake: neither is there.
  """
  if not name:
    raise Mistake('hf: wants a folder or a name of the hub behind it.')
  folder = epath.Path(name).expanduser()
  if folder.is_dir():
    return folder
  try:
    import huggingface_hub as hub
  except ImportError:
    raise Mistake(
      f'hf:{name}: no such folder, and to ask the hub for it: pip install gptjax[hf].'
    ) from None
  wanted = ['*.json', '*.txt', '*.jinja', 'model*.safetensors']
  try:
    return epath.Path(hub.snapshot_download(name, allow_patterns=wanted))
  except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError) as error:
    said = ' '.join(str(error).split())[:200]
    raise Mistake(
      f'hf:{name}: no such folder, and the hub does not give it: {said}'
    ) from None


def _naming(place: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
  """Calls the function; its mistakes begin with the place."""
  try:
    return function(*args, **kwargs)
  except Mistake as mistake:
    raise Mistake(f'{place}: {mistake}') from None


def _named_alike(stored: Mapping[str, Stored], kind: str) -> dict[str, Stored]:
  """The tensors under the names of the family's whole language model.

  A trunk saved alone lacks the prefix. Gemma 3 with images has the text model under a
  name of its own, and the tensors of images, which are left.
  """
  prefix = FAMILIES[kind].rows[0].theirs.partition('.')[0] + '.'
  text = [('language_model.model.', prefix), ('model.language_model.', prefix)]
  text += [('language_model.lm_head.', 'lm_head.')]
  own = {
    new + name.removeprefix(old): tensor
    for name, tensor in stored.items()
    for old, new in text
    if name.startswith(old)
  }
  if kind == 'gemma3_text' and own:
    return own
  if any(name.startswith(prefix) for name in stored):
    return dict(stored)
  return {
    name if name.startswith('lm_head.') else prefix + name: tensor
    for name, tensor in stored.items()
  }


def _check_tied(folder: epath.Path, stored: Mapping[str, Stored], name: str) -> None:
  """Older files hold a tied head too; it must be the table."""
  head, table = stored['lm_head.weight'].read(), stored[name].read()
  if head.shape != table.shape or (head != table).any():
    raise Mistake(
      f'{folder}: tie_word_embeddings is true, but lm_head.weight is not {name}.'
    )


def _check_sizes(place: Any, c: Settings, tokenizer: Tokenizer) -> None:
  """Text must not lead to ids that the model has no row for; special tokens may."""
  beyond = set(range(c.vocab, tokenizer.size)) - {*tokenizer.controls.values()}
  if beyond:
    raise Mistake(
      f'{place}: the tokenizer has {tokenizer.size} ids, the model {c.vocab} rows.'
    )


def _widest(dtypes: Iterable[str]) -> str:
  """The one of the dtypes that holds the others exactly."""
  dtypes = set(dtypes)
  return dtypes.pop() if len(dtypes) == 1 else 'float32'


def _read_tokenizer(
  folder: epath.Path, said: Mapping[str, Any]
) -> tuple[Tokenizer, dict[str, Any]]:
  """The tokenizer, and bos_token, eos_token, pad_token, as far as they are said.

  They are said by name in tokenizer_config.json, else by number in config.json.
  """
  spec = hf.read_spec(folder)
  path = folder / 'tokenizer_config.json'
  told = config.read_json(path) if path.exists() else {}
  try:
    names = {t['id']: t['content'] for t in spec.get('added_tokens') or ()}
  except (KeyError, TypeError) as error:
    raise Mistake(f'{folder}: its tokenizer is damaged: {error!r}.') from None
  special = {}
  for key in ('bos_token', 'eos_token', 'pad_token'):
    name, index = told.get(key), said.get(f'{key}_id')
    name = name.get('content') if isinstance(name, Mapping) else name
    index = index[0] if isinstance(index, list) and index else index
    known = isinstance(index, int) and names.get(index)
    special[key] = name if isinstance(name, str) else known or None
  edges = special['bos_token'], special['eos_token']
  return gguf_tokenizer.with_edges(spec, folder, *edges), special


def _special(tokenizer: Tokenizer, names: Mapping[str, Any]) -> dict[str, str]:
  """Those of the names that are control tokens."""
  return {key: name for key, name in names.items() if name in tokenizer.controls}


def _read_template(folder: epath.Path) -> str:
  """Of chat_template.jinja, else of tokenizer_config.json, the default one."""
  path = folder / 'chat_template.jinja'
  if path.exists():
    try:
      return path.read_bytes().decode()
    except UnicodeDecodeError:
      raise Mistake(f'{path} is no UTF-8.') from None
  path = folder / 'tokenizer_config.json'
  given = config.read_json(path).get('chat_template') if path.exists() else None
  if isinstance(given, list):  # Several, by name.
    named = [t for t in given if isinstance(t, Mapping) and t.get('name') == 'default']
    given = named[0].get('template') if named else None
  return given if isinstance(given, str) else ''


def _read_license(folder: epath.Path) -> str:
  """What the head of the model card calls it."""
  path = folder / 'README.md'
  text = path.read_bytes().decode(errors='replace') if path.exists() else ''
  head = text.split('---')[1:2]
  found = re.search(r'^license: *(\S+)', head[0], re.MULTILINE) if head else None
  return found[1] if found else ''
