"""Files of safetensors as the reference has them; damage of every kind."""

import json
import random
import struct

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from gptjax.interop import safetensors
from gptjax.interop.tensors import Tensor
from gptjax.words import Mistake

DTYPES = dict(float32=np.float32, float16=np.float16, bfloat16=ml_dtypes.bfloat16)


def arrays(dtype):
  rng = np.random.default_rng(0)
  shapes = {'b': (3, 5), 'a': (7,), 'one': (1,), 'none': (0, 4), 'ä': (2, 3, 2)}
  return {k: rng.standard_normal(s).astype(DTYPES[dtype]) for k, s in shapes.items()}


@pytest.mark.parametrize('dtype', DTYPES)
def test_reads_what_the_reference_writes_and_the_other_way(tmp_path, dtype):
  given = arrays(dtype)
  save_file(given, tmp_path / 'x', metadata={'format': 'pt'})
  found = safetensors.read(epath.Path(tmp_path / 'x'))
  assert found.keys() == given.keys()
  for name, array in given.items():
    got = found[name].read()
    assert got.dtype == array.dtype
    assert got.shape == found[name].shape == array.shape
    assert got.tobytes() == array.tobytes()
  tensors = [Tensor(n, a.shape, lambda a=a: a) for n, a in given.items()]
  safetensors.write(epath.Path(tmp_path / 'y'), tensors, dtype)
  for name, array in load_file(tmp_path / 'y').items():
    assert array.dtype == given[name].dtype
    assert array.tobytes() == given[name].tobytes()
  with safe_open(tmp_path / 'y', 'np') as file:
    assert file.metadata() == {'format': 'pt'}


def test_any_cut_is_a_mistake(tmp_path):
  save_file(arrays('float32'), tmp_path / 'x')
  whole = (tmp_path / 'x').read_bytes()
  for size in range(len(whole)):
    (tmp_path / 'x').write_bytes(whole[:size])
    with pytest.raises(Mistake, match='is cut or no file of safetensors'):
      safetensors.read(epath.Path(tmp_path / 'x'))


def test_whatever_the_reference_refuses_is_refused(tmp_path):
  save_file(arrays('float32'), tmp_path / 'x')
  whole = (tmp_path / 'x').read_bytes()
  head = 8 + struct.unpack('<Q', whole[:8])[0]
  draw, refused = random.Random(0), 0
  for _ in range(3000):
    data = bytearray(whole)
    data[draw.randrange(head)] = draw.randrange(256)
    (tmp_path / 'x').write_bytes(data)
    try:
      want = load_file(tmp_path / 'x')
    except (SafetensorError, ValueError, KeyError):
      want = None
    try:
      found = safetensors.read(epath.Path(tmp_path / 'x'))
      got = {name: tensor.read() for name, tensor in found.items()}
    except Mistake:
      refused += 1
      continue
    assert want is not None
    assert {k: v.tobytes() for k, v in got.items()} == {
      k: v.tobytes() for k, v in want.items()
    }
  assert refused > 1000


@pytest.mark.parametrize(
  'entry',
  [
    dict(dtype='F32', shape=[2], data_offsets=[4, 12]),  # A hole before it.
    dict(dtype='F32', shape=[2], data_offsets=[0, 4]),
    dict(dtype='F32', shape=[-2], data_offsets=[0, 8]),
    dict(dtype='F31', shape=[2], data_offsets=[0, 8]),
    dict(dtype='F32', shape='2', data_offsets=[0, 8]),
    dict(dtype='F32', shape=[2]),
    [],
    None,
  ],
  ids=str,
)
def test_a_header_that_lies_is_a_mistake(tmp_path, entry):
  header = json.dumps({'x': entry}).encode()
  data = struct.pack('<Q', len(header)) + header + bytes(8)
  (tmp_path / 'x').write_bytes(data)
  with pytest.raises(Mistake, match='is cut or no file of safetensors'):
    safetensors.read(epath.Path(tmp_path / 'x'))
