"""GGUF as the package `gguf` has it; damaged files; a model there and back."""

import random
import re

import gguf as reference
import jax
import numpy as np
import pytest
from etils import epath

from gptjax import export, sharding, tree
from gptjax.interop import gguf, gguf_models
from gptjax.interop.tensors import Tensor
from gptjax.models.settings import make_settings
from gptjax.origin import find_origin
from gptjax.words import Mistake
from tests.interop import made

SHAPE = (3, 512)
QUANTISED = {'Q8_0', 'Q4_0', 'Q4_1', 'F32', 'F16', 'BF16'}


def blocks(kind):
  """Some bytes that are a tensor of a type, SHAPE."""
  found = reference.GGMLQuantizationType[kind]
  rng = np.random.default_rng(0)
  if kind in QUANTISED:
    values = rng.standard_normal(SHAPE).astype(np.float32)
    return reference.quantize(values, found), found
  block, size = reference.GGML_QUANT_SIZES[found]
  data = rng.integers(0, 256, (*SHAPE[:-1], SHAPE[-1] // block * size), np.uint8)
  # Scales are float16 in bytes that no draw may make infinite.
  data = data.reshape(-1, size)
  scales = rng.standard_normal((len(data), 2)).astype(np.float16).view(np.uint8)
  data[:, :4] = scales if kind == 'Q4_K' else data[:, :4]
  data[:, -2:] = scales[:, :2] if kind == 'Q6_K' else data[:, -2:]
  return data.reshape(*SHAPE[:-1], -1), found


@pytest.mark.parametrize('kind', gguf.READ)
def test_tensors_are_those_of_the_reference(tmp_path, kind):
  data, found = blocks(kind)
  writer = reference.GGUFWriter(tmp_path / 'x', 'llama')
  writer.add_tensor('before', np.arange(7, dtype=np.float32))
  writer.add_tensor('x', data, raw_dtype=found)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  stored = gguf.read(epath.Path(tmp_path / 'x')).tensors['x']
  assert stored.shape == SHAPE
  assert stored.dtype == kind
  got = stored.read()
  assert got.shape == SHAPE
  want = reference.dequantize(data, found).reshape(SHAPE)
  np.testing.assert_array_equal(np.asarray(got, np.float32), want)
  assert np.isfinite(want).all()
  assert np.ptp(want) > 1


def test_other_types_are_refused_by_name(tmp_path):
  data = np.zeros((2, 256 // 256 * 84), np.uint8)
  writer = reference.GGUFWriter(tmp_path / 'x', 'llama')
  kind = reference.GGMLQuantizationType.Q2_K
  writer.add_tensor('x', data, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  with pytest.raises(Mistake, match=r'tensor x is Q2_K: did you mean .*Q'):
    gguf.read(epath.Path(tmp_path / 'x')).tensors['x'].read()


METADATA = {
  'general.architecture': 'llama',
  'a.int': 7,
  'a.float': 1e-5,
  'a.bool': True,
  'a.text': 'ä\n',
  'a.texts': ['x', '', '你'],
  'a.ints': [1, 2, 3],
  'a.floats': [0.5, -1.0],
  'a.none': [],
}


@pytest.mark.parametrize('dtype', gguf.WRITTEN)
def test_the_reference_reads_what_is_written(tmp_path, dtype):
  rng = np.random.default_rng(1)
  arrays = {
    'w': rng.standard_normal((4, 64)).astype(np.float32),
    'odd': rng.standard_normal((2, 33)).astype(np.float32),
    'b': rng.standard_normal(33).astype(np.float32),
  }
  tensors = [Tensor(n, a.shape, lambda a=a: a) for n, a in arrays.items()]
  gguf.write(epath.Path(tmp_path / 'x'), METADATA, tensors, dtype)
  reader = reference.GGUFReader(tmp_path / 'x')
  for key, value in METADATA.items():
    assert reader.fields[key].contents() == pytest.approx(value) or not value
  kinds = {t.name: t.tensor_type.name for t in reader.tensors}
  kind = gguf.WRITTEN[dtype]
  assert kinds == {'w': kind, 'odd': 'F16' if kind == 'Q8_0' else kind, 'b': 'F32'}
  for tensor in reader.tensors:
    found = reference.dequantize(tensor.data, tensor.tensor_type)
    want = arrays[tensor.name]
    near = {'F32': 0, 'F16': 2**-10, 'BF16': 2**-8, 'Q8_0': 0.02}[kinds[tensor.name]]
    np.testing.assert_allclose(found.reshape(want.shape), want, atol=near, rtol=near)
  mine = gguf.read(epath.Path(tmp_path / 'x'))
  assert mine.metadata['a.float'] == 1e-5
  assert list(mine.tensors) == list(arrays)
  for tensor in reader.tensors:
    found = reference.dequantize(tensor.data, tensor.tensor_type)
    own = np.asarray(mine.tensors[tensor.name].read(), np.float32)
    np.testing.assert_array_equal(own, found.reshape(own.shape))


def test_any_cut_and_any_altered_head_is_a_mistake(tmp_path):
  path = epath.Path(tmp_path / 'x')
  data = np.ones((4, 32), np.float32)
  gguf.write(path, METADATA, [Tensor('w', data.shape, lambda: data)], 'float32')
  whole = path.read_bytes()
  for size in range(0, len(whole), 7):
    path.write_bytes(whole[:size])
    with pytest.raises(Mistake, match='is cut'):
      gguf.read(path)
  draw = random.Random(0)
  refused = 0
  for _ in range(2000):
    data = bytearray(whole)
    data[draw.randrange(300)] = draw.randrange(256)
    path.write_bytes(data)
    try:
      for tensor in gguf.read(path).tensors.values():
        tensor.read()
    except Mistake as mistake:
      assert '\n' not in str(mistake)  # noqa: PT017 (the next one may be read)
      refused += 1
  assert refused > 100


def weights_of(name):
  with sharding.use(sharding.make_mesh({'data': 1}, jax.devices()[:1])):
    return tree.paths(find_origin(name).weights()[1])


LLAMA3 = dict(
  rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
  original_max_position_embeddings=8192,
)  # fmt: skip


@pytest.mark.parametrize('dtype', gguf.WRITTEN)
@pytest.mark.parametrize(
  'scaling', [None, LLAMA3, dict(rope_type='linear', factor=2.0)]
)
def test_a_model_comes_back(tmp_path, dtype, scaling):
  given = made.write(tmp_path / 'given', 'float32', rope_scaling=scaling)
  target = f'gguf:{tmp_path / "x.gguf"}'
  export.convert(f'hf:{given}', target, dtype=dtype, say=lambda line: None)
  was, now = find_origin(f'hf:{given}'), find_origin(target)
  assert was.model == now.model
  assert was.length == now.length
  assert now.template.jinja == made.TEMPLATE
  assert now.source['special'] == {
    'bos_token': '<|begin_of_text|>',
    'eos_token': '<|eot_id|>',
  }
  assert now.tokenizer.digest == was.tokenizer.digest
  # Rows of 12, 20 or 24 are no blocks of 32: q8_0 leaves them in float16.
  near = {'float32': 0, 'float16': 2**-11, 'bfloat16': 2**-8, 'q8_0': 2**-11}[dtype]
  before = weights_of(f'hf:{given}')
  for path, leaf in weights_of(target).items():
    np.testing.assert_allclose(leaf, before[path], rtol=near, atol=near and 1e-7)


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    ({'general.architecture': 'mamba'}, "general.architecture='mamba'"),
    ({'llama.expert_count': 8}, 'expert_count=8'),
    ({'llama.new_thing': 8}, 'llama.new_thing=8 is not known'),
    ({'llama.rope.scaling.type': 'longrope'}, "rope.scaling.type='longrope'"),
    ({'llama.block_count': 4}, 'blk.3'),
    ({'llama.block_count': 2}, 'blk.2'),
    ({'llama.attention.key_length': 8}, 'differ'),
    ({'llama.vocab_size': 8}, 'llama.vocab_size=8'),
    ({'split.count': 2}, 'one of several parts'),
    ({'tokenizer.ggml.tokens': []}, 'holds no tokenizer'),
    ({'tokenizer.ggml.eos_token_id': 999}, 'its tokenizer is damaged'),
    ({'tokenizer.huggingface.json': '{'}, 'its tokenizer is damaged'),
  ],
  ids=str,
)
def test_what_is_not_known_is_refused(tmp_path, change, says):
  given = made.write(tmp_path / 'given', 'float32')
  target = tmp_path / 'x.gguf'
  export.convert(f'hf:{given}', f'gguf:{target}', say=lambda line: None)
  file = gguf.read(epath.Path(target))
  told = {
    k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in file.metadata.items()
  }
  tensors = [Tensor(n, t.shape, t.read) for n, t in file.tensors.items()]
  other = epath.Path(tmp_path / 'other.gguf')
  gguf.write(other, {**told, **change}, tensors, 'float32')
  with pytest.raises(Mistake, match=re.escape(says)):
    weights_of(f'gguf:{other}')


SIZES = dict(vocab=128, layers=2, embed=16, heads=2, mlp=32)


@pytest.mark.parametrize(
  ('preset', 'settings', 'want'),
  [
    ('llama', {}, 'llama'),
    ('gpt', {}, 'gpt2'),
    ('llama', dict(rope=dict(kind='ntk', factor=2.0)), 'llama'),
    ('mistral', dict(window=4), "pattern=['local', 'local']"),
    ('qwen3', {}, 'qk_norm=True'),
    ('gemma2', dict(window=4), 'GGUF is written for the shapes of llama and gpt2 only'),
    ('llama', dict(positions='none'), "positions='none'"),
  ],
)
def test_other_shapes_are_refused_with_what_differs(preset, settings, want):
  c = make_settings(preset, {**SIZES, **settings})
  if want in gguf_models.SHAPES:
    assert gguf_models.choose_shape(c) == want
    return
  with pytest.raises(Mistake, match=re.escape(want)):
    gguf_models.choose_shape(c)
