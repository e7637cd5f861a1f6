"""Files of safetensors, read and written a tensor at a time.

The format: 8 bytes (little-endian) with the length of a JSON header, the header, the
bytes of the tensors. The header says of each tensor its dtype, shape and where its
bytes begin and end; together they fill the rest of the file. Larger models lie in
several files with an index. The package `safetensors` writes only what the memory holds
whole.

Source: github.com/huggingface/safetensors, README, "Format".
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from gptjax import files
from gptjax.interop.tensors import DTYPES, Stored, Tensor, narrowed
from gptjax.words import Mistake

FILE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
NAMES = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16'}
_BYTES = dict(
  BOOL=1, U8=1, I8=1, F8_E4M3=1, F8_E5M2=1, I16=2, U16=2, F16=2, BF16=2, I32=4, U32=4,
  F32=4, I64=8, U64=8, F64=8,
)  # fmt: skip
_LONGEST = 100_000_000  # Bytes of a header, as the reference has it.


def read_folder(folder: epath.Path) -> dict[str, Stored]:
  """The tensors of model.safetensors, or of all files that the index names.

  Raises:
    Mistake: there are none, or a file is damaged or missing.
  """
  if (folder / INDEX).exists():
    return _read_index(folder)
  if (folder / FILE).exists():
    return read(folder / FILE)
  found = sorted(p.name for p in folder.glob('*.safetensors'))
  if found:
    raise Mistake(
      f'{folder} holds {", ".join(found[:3])}, but neither {FILE} nor {INDEX}.'
    )
  kinds = ('*.bin', '*.pt', '*.pth', '*.ckpt', '*.h5', '*.msgpack')
  others = sorted(p.name for kind in kinds for p in folder.glob(kind))
  if not others:
    raise Mistake(f'{folder} holds no weights: neither {FILE} nor {INDEX}.')
  raise Mistake(
    f'{folder} holds weights as {others[0]} only, no {FILE}: a pickle may run any code '
    'when it is read, so none is opened here. Where you trust its author, let '
    'transformers write it anew: AutoModelForCausalLM.from_pretrained(FOLDER)'
    '.save_pretrained(OTHER).'
  )


def _read_index(folder: epath.Path) -> dict[str, Stored]:
  try:
    table = json.loads((folder / INDEX).read_bytes())['weight_map']
    names = sorted(set(table.values()))
    if not all(name == epath.Path(name).name for name in names):
      raise ValueError('a file outside of the folder')
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise Mistake(f'{folder / INDEX} is damaged: {error!r}.') from None
  found: dict[str, Stored] = {}
  for name in names:
    if not (folder / name).exists():
      raise Mistake(f'{folder} lacks {name}, which its {INDEX} names.')
    for key, stored in read(folder / name).items():
      if table.get(key) != name:
        raise Mistake(f'{folder / name} holds {key}, which {INDEX} does not put there.')
      found[key] = stored
  if lost := [key for key in table if key not in found]:
    raise Mistake(
      f'{folder / table[lost[0]]} lacks {lost[0]}, which {INDEX} puts there.'
    )
  return found


def read(path: epath.Path) -> dict[str, Stored]:
  """The tensors of a file.

  Raises:
    Mistake: the file is cut, or no file of safetensors.
  """
  try:
    total = path.stat().length
    with path.open('rb') as file:
      (length,) = struct.unpack('<Q', file.read(8))
      if length > min(_LONGEST, total - 8):
        raise ValueError('its header is longer than the file')
      header = json.loads(file.read(length).decode())
    header.pop('__metadata__', None)
    entries = sorted(
      (*entry['data_offsets'], name, entry['dtype'], tuple(entry['shape']))
      for name, entry in header.items()
    )
    end = 0
    for start, stop, name, dtype, shape in entries:
      if start != end or stop - start != math.prod(shape) * _BYTES.get(dtype, -1):
        raise ValueError(f'{name} ({dtype}) lies at other bytes than its shape takes')
      end = stop
    if end != total - 8 - length:
      raise ValueError(f'{total} bytes, where its tensors take {end + 8 + length}')
  except OSError as error:
    raise Mistake(f'{path}: {files.cause(error)}.') from None
  except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
    raise Mistake(f'{path} is cut or no file of safetensors: {error}.') from None
  return {
    name: Stored(shape, dtype, _reader(path, 8 + length + start, name, dtype, shape))
    for start, _, name, dtype, shape in entries
  }


def _reader(
  path: epath.Path, start: int, name: str, dtype: str, shape: Sequence[int]
) -> Callable[[], np.ndarray]:
  kinds = {short: DTYPES[long] for long, short in NAMES.items()}

  def read() -> np.ndarray:
    if dtype not in kinds:
      allowed = ', '.join(kinds)
      raise Mistake(f'{path}: tensor {name} is {dtype}; read are {allowed}.')
    size = math.prod(shape) * _BYTES[dtype]
    with path.open('rb') as file:
      file.seek(start)
      data = file.read(size)
    if len(data) != size:
      raise Mistake(f'{path} was cut while it was read: tensor {name}.')
    return np.frombuffer(data, kinds[dtype]).reshape(shape)

  return read


def write_folder(
  folder: epath.Path,
  tensors: Iterable[Tensor],
  dtype: str,
  most: int = 5_000_000_000,
) -> None:
  """Writes the tensors into a folder: one file, or several of at most `most` bytes."""
  groups: list[list[Tensor]] = [[]]
  for tensor in tensors:
    if groups[-1] and sum(_size(t, dtype) for t in [*groups[-1], tensor]) > most:
      groups.append([])
    groups[-1].append(tensor)
  if len(groups) == 1:
    write(folder / FILE, groups[0], dtype)
    return
  table: dict[str, str] = {}
  for number, group in enumerate(groups, 1):
    name = f'model-{number:05}-of-{len(groups):05}.safetensors'
    write(folder / name, group, dtype)
    table |= {tensor.name: name for tensor in group}
  size = sum(_size(tensor, dtype) for group in groups for tensor in group)
  index: dict[str, Any] = {'metadata': {'total_size': size}, 'weight_map': table}
  (folder / INDEX).write_text(json.dumps(index, indent=2) + '\n')


def write(path: epath.Path, tensors: Sequence[Tensor], dtype: str) -> None:
  """Writes a file, one tensor in memory at a time."""
  header: dict[str, Mapping[str, Any]] = {'__metadata__': {'format': 'pt'}}
  end = 0
  for tensor in tensors:
    start, end = end, end + _size(tensor, dtype)
    said = {'dtype': NAMES[dtype], 'shape': list(tensor.shape)}
    header[tensor.name] = {**said, 'data_offsets': [start, end]}
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with path.open('wb') as file:
    file.write(struct.pack('<Q', len(text)) + text)
    for tensor in tensors:
      file.write(narrowed(tensor, dtype).reshape(-1).view(np.uint8).data)


def _size(tensor: Tensor, dtype: str) -> int:
  """Bytes of a tensor in a file."""
  return math.prod(tensor.shape) * DTYPES[dtype].itemsize
