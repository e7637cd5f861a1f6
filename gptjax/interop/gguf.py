"""Files of GGUF: metadata, and tensors that are read and written one at a time.

Little-endian: magic, version, counts; metadata (key, type, value); of each tensor its
name, dimensions (the fastest first), type and place; then, aligned, their bytes. The
package `gguf` knows the quantised types; its reader takes seconds over a vocabulary and
trusts the file, so the header is read here.

Source: github.com/ggml-org/ggml, docs/gguf.md.
"""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
from etils import epath

from gptjax import files
from gptjax.interop.tensors import Stored, Tensor, narrowed
from gptjax.lookup import nearest
from gptjax.words import Mistake

READ = ('F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q4_K', 'Q6_K')
WRITTEN = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16', 'q8_0': 'Q8_0'}
_NUMBERS = {
  **{0: '<u1', 1: '<i1', 2: '<u2', 3: '<i2', 4: '<u4', 5: '<i4', 6: '<f4', 7: '|b1'},
  **{10: '<u8', 11: '<i8', 12: '<f8'},
}
_STRING, _ARRAY = 8, 9
_ALIGN = 32
_MOST = 1 << 32  # Bytes or entries beyond any that there are.


class File(NamedTuple):
  """What a file says, and its tensors by name."""

  metadata: dict[str, Any]  # Numbers, strings, lists; arrays of numbers as np.ndarray.
  tensors: dict[str, Stored]


def read(path: epath.Path) -> File:
  """Metadata and tensors of a file; the tensors are read when they are asked for.

  Raises:
    Mistake: there is no such file, it is cut or no GGUF, or a part of several.
  """
  try:
    total = path.stat().length
    with path.open('rb') as file:
      metadata, infos, start = _read_head(file)
  except FileNotFoundError:
    raise Mistake(f'{path}: no such file.') from None
  except OSError as error:
    raise Mistake(f'{path} is no GGUF file: {files.cause(error)}.') from None
  except (ValueError, EOFError, OverflowError, MemoryError, RecursionError) as error:
    raise Mistake(f'{path} is cut or no GGUF: {error}.') from None
  if metadata.get('split.count', 0) not in (0, 1):
    raise Mistake(f'{path} is one of several parts: llama-gguf-split merges them.')
  tensors = {}
  for name, shape, kind, offset in infos:
    dtype, size = _kind(kind, shape)
    if size is not None and start + offset + size > total:
      raise Mistake(f'{path} is cut: tensor {name} ends beyond its {total} bytes.')
    tensors[name] = Stored(
      shape, dtype, _reader(path, name, start + offset, shape, kind)
    )
  return File(metadata, tensors)


def _read_head(
  file: IO[bytes],
) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]], int]:
  """Metadata; name, shape, type, offset of each tensor; where their bytes begin."""
  if file.read(4) != b'GGUF':
    raise ValueError('it does not begin with GGUF')
  version, tensors, pairs = _take(file, '<IQQ')
  if version not in (2, 3):
    raise ValueError(f'version {version} (2 and 3 are read, little-endian)')
  metadata = {}
  for _ in range(pairs):
    key = _string(file)
    metadata[key] = _value(file, *_take(file, '<I'))
  infos = []
  for _ in range(tensors):
    name = _string(file)
    (dimensions,) = _take(file, '<I')
    if dimensions > 4:
      raise ValueError(f'{name} has {dimensions} dimensions')
    shape = tuple(reversed(_take(file, f'<{dimensions}Q')))
    infos.append((name, shape, *_take(file, '<IQ')))
  align = metadata.get('general.alignment', _ALIGN)
  if not isinstance(align, int) or align < 1:
    raise ValueError(f'general.alignment={align}')
  return metadata, infos, -(-file.tell() // align) * align


def _bytes(file: IO[bytes], size: int) -> bytes:
  data = file.read(size) if size < _MOST else b''
  if len(data) != size:
    raise EOFError('the file ends early')
  return data


def _take(file: IO[bytes], layout: str) -> tuple[Any, ...]:
  return struct.unpack(layout, _bytes(file, struct.calcsize(layout)))


def _string(file: IO[bytes]) -> str:
  return _bytes(file, *_take(file, '<Q')).decode()


def _value(file: IO[bytes], kind: int) -> Any:
  if kind == _STRING:
    return _string(file)
  if kind == _ARRAY:
    inner, count = _take(file, '<IQ')
    if inner in (_STRING, _ARRAY):
      return [_value(file, inner) for _ in range(count)]
    return _number(file, inner, count)
  number = _number(file, kind, 1)[0]
  # The shortest decimal that is the same float32: 1e-05 and not 9.99999974e-06.
  return float(str(number)) if number.dtype == np.float32 else number.item()


def _number(file: IO[bytes], kind: int, count: int) -> np.ndarray:
  if kind not in _NUMBERS:
    raise ValueError(f'a value of type {kind}')
  dtype = np.dtype(_NUMBERS[kind])
  return np.frombuffer(_bytes(file, count * dtype.itemsize), dtype)


def _kind(kind: int, shape: Sequence[int]) -> tuple[str, int | None]:
  """The name of a tensor's type and its bytes, if they are known."""
  import gguf

  try:
    found = gguf.GGMLQuantizationType(kind)
  except ValueError:
    return f'type {kind}', None
  block, size = gguf.GGML_QUANT_SIZES[found]
  return found.name, math.prod(shape) // block * size


def _reader(
  path: epath.Path, name: str, start: int, shape: Sequence[int], kind: int
) -> Callable[[], np.ndarray]:
  def read() -> np.ndarray:
    import gguf

    dtype, size = _kind(kind, shape)
    if dtype not in READ or size is None:
      raise Mistake(f'{path}: tensor {name} is {dtype}: {nearest(dtype, READ)}')
    with path.open('rb') as file:
      file.seek(start)
      data = np.frombuffer(file.read(size), np.uint8)
    if data.size != size:
      raise Mistake(f'{path} was cut while it was read: tensor {name}.')
    if dtype in ('F32', 'F16'):
      return data.view('<f4' if dtype == 'F32' else '<f2').reshape(shape)
    rows = data.reshape(*shape[:-1], -1)
    return gguf.dequantize(rows, gguf.GGMLQuantizationType(kind)).reshape(shape)

  return read


def write(
  path: epath.Path,
  metadata: Mapping[str, Any],
  tensors: Sequence[Tensor],
  dtype: str,
) -> None:
  """Writes a file, one tensor in memory at a time.

  Args:
    path: the file.
    metadata: bool, int (from 0 on), float and str, and lists of one of the last three.
    tensors: what to write.
    dtype: float32, float16, bfloat16 or q8_0; of one axis all are float32, and q8_0
      leaves rows that are no multiple of 32 in float16.
  """
  import gguf

  head = [b'GGUF', struct.pack('<IQQ', 3, len(tensors), len(metadata))]
  for key, value in metadata.items():
    head += [_packed(key), *_pack_value(value)]
  kinds = [
    gguf.GGMLQuantizationType[_written(tensor.shape, dtype)] for tensor in tensors
  ]
  offset = 0
  for tensor, kind in zip(tensors, kinds, strict=True):
    head += [_packed(tensor.name), struct.pack('<I', len(tensor.shape))]
    head += [struct.pack('<Q', n) for n in reversed(tensor.shape)]
    head.append(struct.pack('<IQ', kind, offset))
    block, size = gguf.GGML_QUANT_SIZES[kind]
    offset += -(-math.prod(tensor.shape) // block * size // _ALIGN) * _ALIGN
  with path.open('wb') as file:
    data = b''.join(head)
    file.write(data + bytes(-len(data) % _ALIGN))
    for tensor, kind in zip(tensors, kinds, strict=True):
      array = narrowed(tensor, 'float16' if kind.name == 'F16' else 'float32')
      array = gguf.quantize(array, kind).reshape(-1).view(np.uint8)
      file.write(array.data)
      file.write(bytes(-array.size % _ALIGN))


def _written(shape: Sequence[int], dtype: str) -> str:
  if len(shape) == 1:
    return 'F32'
  return 'F16' if dtype == 'q8_0' and shape[-1] % 32 else WRITTEN[dtype]


def _packed(text: str) -> bytes:
  data = text.encode()
  return struct.pack('<Q', len(data)) + data


def _pack_value(value: Any) -> list[bytes]:
  """The type of a value, and the value."""
  if not isinstance(value, list):
    return [struct.pack('<I', _type(value)), _pack(value)]
  inner = _type(value[0] if value else '')
  count = struct.pack('<IIQ', _ARRAY, inner, len(value))
  return [count, *map(_pack, value)]


def _type(value: Any) -> int:
  return {bool: 7, int: 4, float: 6, str: _STRING}[type(value)]


def _pack(value: Any) -> bytes:
  if isinstance(value, str):
    return _packed(value)
  return struct.pack({bool: '<?', int: '<I', float: '<f'}[type(value)], value)
