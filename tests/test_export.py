"""Published weights to a run and back, to the bit; targets whole or not there."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from gptjax import export, sharding
from gptjax.interop import publish
from gptjax.interop.config import write_config
from gptjax.interop.families import FAMILIES
from gptjax.interop.tensors import tensors
from gptjax.models.settings import make_settings
from gptjax.models.transformer import transformer
from gptjax.origin import find_origin, make_model
from gptjax.run import open_run
from gptjax.words import Failure, Mistake
from tests.interop import made


def silent(line):
  del line


def convert(source, target, **settings):
  export.convert(str(source), str(target), say=silent, **settings)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])
def test_a_folder_comes_back_to_the_bit(tmp_path, dtype):
  given = made.write(tmp_path / 'given', dtype)
  convert(f'hf:{given}', tmp_path / 'run')
  convert(tmp_path / 'run', f'hf:{tmp_path / "back"}')
  before = load_file(given / 'model.safetensors')
  after = load_file(tmp_path / 'back' / 'model.safetensors')
  assert before.keys() == after.keys()
  for name, array in before.items():
    assert array.dtype == after[name].dtype == made.DTYPES[dtype]
    assert array.tobytes() == after[name].tobytes(), name
  config = json.loads((tmp_path / 'back' / 'config.json').read_text())
  for key, value in {**made.CONFIG, 'vocab_size': made.vocab()}.items():
    assert config[key] == (dtype if key == 'torch_dtype' else value), key


def test_what_belongs_to_a_model_goes_through_a_run(tmp_path):
  given = made.write(tmp_path / 'given')
  convert(f'hf:{given}', tmp_path / 'run')
  convert(tmp_path / 'run', f'hf:{tmp_path / "back"}')
  back = tmp_path / 'back'
  assert (back / 'chat_template.jinja').read_text() == made.TEMPLATE
  spec = json.loads((back / 'tokenizer.json').read_text())
  assert spec == made.tokenizer()
  told = json.loads((back / 'tokenizer_config.json').read_text())
  assert told['bos_token'] == '<|begin_of_text|>'
  assert told['eos_token'] == '<|eot_id|>'
  generation = json.loads((back / 'generation_config.json').read_text())
  assert generation['temperature'] == 0.6
  assert generation['eos_token_id'] == [258, 262]
  card = (back / 'README.md').read_text()
  assert f'hf:{given}' in card
  assert 'split_special_tokens' in card
  assert 'license: mit\n' in card
  assert card.startswith('---\n')


def test_several_files_are_one_model(tmp_path, monkeypatch):
  one = made.write(tmp_path / 'one')
  three = made.write(tmp_path / 'three', files=3)
  weights = [logits(f'hf:{p}') for p in (one, three)]
  np.testing.assert_array_equal(*weights)
  real = publish.safetensors.write_folder
  monkeypatch.setattr(
    publish.safetensors, 'write_folder', lambda *a: real(*a, most=3000)
  )
  convert(f'hf:{one}', f'hf:{tmp_path / "cut"}')
  files = sorted((tmp_path / 'cut').glob('*.safetensors'))
  assert len(files) > 2
  assert all(f.stat().st_size < 9000 for f in files)
  np.testing.assert_array_equal(logits(f'hf:{tmp_path / "cut"}'), weights[0])


def logits(name):
  with sharding.use(sharding.make_mesh({'data': 1}, jax.devices()[:1])):
    origin = find_origin(name, say=silent)
    model = make_model(origin.model, origin.tokenizer)
    _, weights = origin.weights()
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    hidden, _, _ = jax.jit(model.hidden)(weights, {'tokens': tokens})
    return np.asarray(model.heads['lm'](weights, hidden))


def test_a_run_of_published_weights_is_a_run(tmp_path):
  convert(f'hf:{made.write(tmp_path / "given")}', tmp_path / 'run')
  run = open_run(tmp_path / 'run', say=silent)
  assert run.length == 64
  assert run.step == 0
  assert run.generate('the', max_tokens=3, temperature=0.0)
  np.testing.assert_array_equal(
    logits(str(tmp_path / 'run')), logits(f'hf:{tmp_path / "given"}')
  )


def test_weights_lie_on_the_mesh_in_force(tmp_path):
  given = made.write(tmp_path / 'given')
  with sharding.use(sharding.make_mesh({'fsdp': 2, 'tensor': 2}, jax.devices()[:4])):
    _, weights = find_origin(f'hf:{given}').weights()
  query = weights['layers']['0:3:1']['attention']['query']
  assert {s.data.shape for s in query.addressable_shards} == {(3, 6, 2, 6)}


@pytest.mark.parametrize('rows', [300, made.vocab() + 1])
def test_more_rows_than_ids_are_kept_and_never_said(tmp_path, rows):
  given = made.write(tmp_path / 'given', weights=made.tensors(rows))
  origin = find_origin(f'hf:{given}')
  assert origin.model['rows'] == rows
  found = logits(f'hf:{given}')
  assert np.isfinite(found[..., : made.vocab()]).all()
  assert np.all(found[..., made.vocab() :] == -np.inf)
  convert(f'hf:{given}', tmp_path / 'run')
  convert(tmp_path / 'run', f'hf:{tmp_path / "back"}')
  after = load_file(tmp_path / 'back' / 'model.safetensors')
  before = load_file(given / 'model.safetensors')
  for name in ('model.embed_tokens.weight', 'lm_head.weight'):
    assert before[name].tobytes() == after[name].tobytes()


def test_a_tied_head_in_the_file_must_be_the_table(tmp_path):
  weights = made.tensors(tied=True)
  same = {**weights, 'lm_head.weight': weights['model.embed_tokens.weight']}
  given = made.write(
    tmp_path / 'same', 'float32', weights=same, tie_word_embeddings=True
  )
  assert np.isfinite(logits(f'hf:{given}')[..., : made.vocab()]).all()
  other = {**same, 'lm_head.weight': same['lm_head.weight'] + 1}
  given = made.write(tmp_path / 'other', weights=other, tie_word_embeddings=True)
  with pytest.raises(Mistake, match=r'lm_head.weight is not model.embed_tokens'):
    logits(f'hf:{given}')


def test_a_trunk_saved_alone_is_known(tmp_path):
  weights = made.tensors(tied=True)
  whole = made.write(tmp_path / 'whole', weights=weights, tie_word_embeddings=True)
  bare = {k.removeprefix('model.'): v for k, v in weights.items()}
  trunk = made.write(
    tmp_path / 'bare', weights=bare, tie_word_embeddings=True, vocab_size=made.vocab()
  )
  np.testing.assert_array_equal(logits(f'hf:{trunk}'), logits(f'hf:{whole}'))


def test_gpt2_as_the_hub_has_it(tmp_path):
  """No prefix, the masks of old files, GPT-2's pair of tokenizer files."""
  pair = tmp_path / 'pair'
  pair.mkdir()
  spec = made.tokenizer()['model']
  vocab = {**spec['vocab'], '<|endoftext|>': len(spec['vocab'])}
  (pair / 'vocab.json').write_text(json.dumps(vocab))
  (pair / 'merges.txt').write_text('\n'.join(['#version: 0.2', *spec['merges']]))
  told = dict(
    model_type='gpt2', n_embd=8, n_head=2, n_layer=2, n_positions=16, n_ctx=16
  )
  told |= dict(vocab_size=len(vocab), summary_type='cls_index', task_specific_params={})
  (pair / 'config.json').write_text(json.dumps(told))
  rng = np.random.default_rng(0)
  shapes = {'wte.weight': (len(vocab), 8), 'wpe.weight': (16, 8)}
  shapes |= {'ln_f.weight': (8,), 'ln_f.bias': (8,)}
  for n in range(2):
    inner = {'ln_1': (8,), 'ln_2': (8,), 'attn.c_attn': (8, 24), 'attn.c_proj': (8, 8)}
    inner |= {'mlp.c_fc': (8, 32), 'mlp.c_proj': (32, 8)}
    for name, shape in inner.items():
      shapes[f'h.{n}.{name}.weight'] = shape
      shapes[f'h.{n}.{name}.bias'] = shape[-1:]
  weights = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
  masks = {f'h.{n}.attn.bias': np.ones((1, 1, 16, 16), np.uint8) for n in range(2)}
  made.save_file({**weights, **masks}, pair / 'model.safetensors')
  convert(f'hf:{pair}', tmp_path / 'run')
  convert(tmp_path / 'run', f'hf:{tmp_path / "back"}')
  after = load_file(tmp_path / 'back' / 'model.safetensors')
  assert after.keys() == {f'transformer.{name}' for name in weights}
  for name, array in weights.items():
    np.testing.assert_array_equal(after[f'transformer.{name}'], array)
  run = open_run(tmp_path / 'run', say=silent)
  assert run.tokenizer.start == run.tokenizer.end == vocab['<|endoftext|>']
  assert run.length == 16
  assert (
    json.loads((tmp_path / 'back' / 'config.json').read_text())['n_positions'] == 16
  )
  np.testing.assert_array_equal(logits(f'hf:{tmp_path / "back"}'), logits(f'hf:{pair}'))


@pytest.mark.parametrize('style', ['language_model.model.', 'model.language_model.'])
def test_of_gemma_with_images_the_text_is_read(tmp_path, style):
  sizes = dict(layers=3, embed=12, heads=2, kv_heads=1, head=8, mlp=20, window=4)
  told = dict(preset='gemma3', pattern='local,local,global', length=32, **sizes)
  c = make_settings(told.pop('preset'), {**told, 'vocab': made.vocab()})
  weights = transformer(**vars(c)).init(jax.random.key(0))
  found = {
    t.name: np.asarray(t.read())
    for t in tensors(FAMILIES['gemma3_text'].rows, weights, c)
  }
  config = write_config('gemma3_text', c)
  plain = made.write(tmp_path / 'plain', 'float32', found)
  (plain / 'config.json').write_text(json.dumps(config))
  seen = {name.replace('model.', style, 1): array for name, array in found.items()} | {
    'vision_tower.x.weight': np.zeros(3),
    'multi_modal_projector.y': np.ones(2),
  }
  both = made.write(tmp_path / 'both', 'float32', seen)
  wrapped = dict(model_type='gemma3', text_config=config, vision_config={'a': 1})
  (both / 'config.json').write_text(json.dumps(wrapped))
  np.testing.assert_array_equal(logits(f'hf:{both}'), logits(f'hf:{plain}'))


def broken(change):
  """A folder's tensors with a change."""
  weights = made.tensors()
  change(weights)
  return weights


QUERY = 'model.layers.1.self_attn.q_proj.weight'
INDEX = 'model.safetensors.index.json'
DAMAGES = {
  'no config': (lambda f: (f / 'config.json').unlink(), 'has no config.json'),
  'config is no JSON': (lambda f: (f / 'config.json').write_text('{'), 'is no JSON'),
  'config is a list': (
    lambda f: (f / 'config.json').write_text('[]'),
    'no JSON object',
  ),
  'bad UTF-8': (lambda f: (f / 'config.json').write_bytes(b'\xff'), 'is no JSON'),
  'template in no UTF-8': (
    lambda f: (f / 'chat_template.jinja').write_bytes(b'\xff'),
    'is no UTF-8',
  ),
  'template that is none': (
    lambda f: (f / 'chat_template.jinja').write_text('{% for'),
    'template',
  ),
  'no weights': (lambda f: (f / 'model.safetensors').unlink(), 'holds no weights'),
  'pickles': (
    lambda f: (f / 'model.safetensors').rename(f / 'pytorch_model.bin'),
    'a pickle may run any code',
  ),
  'cut weights': (
    lambda f: (f / 'model.safetensors').write_bytes(
      (f / 'model.safetensors').read_bytes()[:-1]
    ),
    'is cut or no file of safetensors',
  ),
  'empty weights': (
    lambda f: (f / 'model.safetensors').write_bytes(b''),
    'is cut or no file of safetensors',
  ),
  'no tokenizer': (lambda f: (f / 'tokenizer.json').unlink(), 'holds no tokenizer'),
  'empty tokenizer': (
    lambda f: (f / 'tokenizer.json').write_text('{}'),
    'damaged or no tokenizer',
  ),
  'index of nothing': (
    lambda f: (f / 'model.safetensors.index.json').write_text(
      '{"weight_map": {"a": "b"}}'
    ),
    'lacks b, which',
  ),
  'index that leaves the folder': (
    lambda f: (f / INDEX).write_text('{"weight_map": {"a": "../model.safetensors"}}'),
    'outside of the folder',
  ),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_a_damaged_folder_is_one_line(tmp_path, name):
  given = made.write(tmp_path / 'given')
  damage, says = DAMAGES[name]
  damage(given)
  with pytest.raises(Mistake, match=re.escape(says)) as caught:
    convert(f'hf:{given}', tmp_path / 'run')
  assert '\n' not in str(caught.value)
  assert [p.name for p in tmp_path.iterdir()] == ['given']


WRONG = {
  'missing': (lambda w: w.pop(QUERY), f'tensor {QUERY} is missing'),
  'left over': (
    lambda w: w.update({'model.extra.weight': np.zeros(3)}),
    'tensor model.extra.weight is there',
  ),
  'a bias too many': (
    lambda w: w.update({QUERY.replace('weight', 'bias'): np.zeros(24)}),
    'q_proj.bias is there',
  ),
  'another shape': (
    lambda w: w.update({QUERY: w[QUERY].T.copy()}),
    f'tensor {QUERY} is [12, 24]; the config makes it [24, 12]',
  ),
}


@pytest.mark.parametrize('name', WRONG)
def test_a_wrong_tensor_is_one_line(tmp_path, name):
  change, says = WRONG[name]
  given = made.write(tmp_path / 'given', weights=broken(change))
  with pytest.raises(Mistake, match=re.escape(says)):
    convert(f'hf:{given}', tmp_path / 'run')
  assert [p.name for p in tmp_path.iterdir()] == ['given']


def test_weights_in_integers_are_refused(tmp_path):
  given = made.write(tmp_path / 'given')
  weights = load_file(given / 'model.safetensors')
  weights[QUERY] = weights[QUERY].astype(np.int8)
  made.save_file(weights, given / 'model.safetensors')
  with pytest.raises(Mistake, match=r'q_proj\.weight is I8; read are'):
    convert(f'hf:{given}', tmp_path / 'run')


def test_a_tokenizer_of_more_ids_than_rows_is_refused(tmp_path):
  rows = 200
  given = made.write(tmp_path / 'given', weights=made.tensors(rows))
  with pytest.raises(Mistake, match=f'the tokenizer has .* ids, the model {rows} rows'):
    find_origin(f'hf:{given}')


def test_numbers_that_float16_does_not_reach_are_refused(tmp_path):
  weights = made.tensors()
  weights[QUERY][0, 0] = 1e5
  given = made.write(tmp_path / 'given', 'float32', weights)
  for target in ('hf:', 'gguf:'):
    with pytest.raises(Mistake, match=r'numbers up to 1e\+05, which float16'):
      convert(f'hf:{given}', f'{target}{tmp_path / "out"}', dtype='float16')
    convert(f'hf:{given}', f'{target}{tmp_path / target[:2]}', dtype='bfloat16')


def test_a_target_is_never_written_over(tmp_path):
  given = made.write(tmp_path / 'given')
  for target in ('run', 'hf:folder', 'gguf:file'):
    place = tmp_path / target.rpartition(':')[2]
    name = target.replace(place.name, str(place))
    place.write_text('mine')
    with pytest.raises(Mistake, match='is there already'):
      convert(f'hf:{given}', name)
    assert place.read_text() == 'mine'


@pytest.mark.parametrize('target', ['run', 'hf:folder', 'gguf:file'])
def test_half_a_target_never_counts(tmp_path, monkeypatch, target):
  given = made.write(tmp_path / 'given')
  place = tmp_path / target.rpartition(':')[2]

  def fail(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(publish.safetensors, 'write', fail)
  monkeypatch.setattr(publish.gguf, 'write', fail)
  monkeypatch.setattr(export.folder, 'environment', fail)
  with pytest.raises(Failure, match='No space left'):
    convert(f'hf:{given}', target.replace(place.name, str(place)))
  assert [p.name for p in tmp_path.iterdir()] == ['given']


def test_an_empty_folder_may_be_the_target(tmp_path):
  given = made.write(tmp_path / 'given')
  (tmp_path / 'back').mkdir()
  convert(f'hf:{given}', f'hf:{tmp_path / "back"}')
  assert (tmp_path / 'back' / 'config.json').exists()


@pytest.mark.parametrize(
  ('target', 'dtype', 'says'),
  [
    ('run', 'float32', '--dtype is for'),
    ('hf:out', 'q8_0', '--dtype=q8_0: of hf:DIR are'),
    ('hf:', '', 'a name is missing'),
  ],
)
def test_mistakes_of_a_target(tmp_path, monkeypatch, target, dtype, says):
  monkeypatch.chdir(tmp_path)
  given = made.write(tmp_path / 'given')
  with pytest.raises(Mistake, match=re.escape(says)):
    convert(f'hf:{given}', target, dtype=dtype)


@pytest.mark.parametrize(
  ('source', 'says'),
  [
    ('nowhere', 'nowhere is no run folder'),
    ('gguf:nowhere', 'nowhere: no such file'),
    ('gguf:.', 'is no GGUF file'),
    ('hf:', 'hf: wants a folder or a name of the hub'),
  ],
)
def test_mistakes_of_a_source(tmp_path, monkeypatch, source, says):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(Mistake, match=re.escape(says)):
    convert(source, tmp_path / 'run')


def test_a_published_folder_without_hf_is_known(tmp_path):
  given = made.write(tmp_path / 'given')
  with pytest.raises(Mistake, match=f'hf:{given}'):
    find_origin(str(given))


def test_the_hub_is_asked_for_what_is_no_folder(tmp_path, monkeypatch):
  import huggingface_hub as hub

  given = made.write(tmp_path / 'given')
  asked = []

  def snapshot(name, allow_patterns):
    asked.append((name, allow_patterns))
    return str(given)

  monkeypatch.setattr(hub, 'snapshot_download', snapshot)
  assert find_origin('hf:who/what').length == 64
  assert asked[0][0] == 'who/what'
  assert not any('bin' in pattern for pattern in asked[0][1])

  def offline(name, allow_patterns):
    raise hub.errors.LocalEntryNotFoundError('no\nnetwork')

  monkeypatch.setattr(hub, 'snapshot_download', offline)
  with pytest.raises(Mistake, match='hf:gpt2: no such folder, and the hub') as caught:
    find_origin('hf:gpt2')
  assert '\n' not in str(caught.value)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(Mistake, match=r'pip install gptjax\[hf\]'):
    find_origin('hf:gpt2')


_MEASURE = """
import resource, sys
from gptjax.export import convert
import jax
jax.devices()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
convert(f'hf:{sys.argv[1]}', sys.argv[2], say=lambda line: None)
print(1024 * (peak() - before))
"""


@pytest.mark.slow
def test_memory_stays_near_one_copy(tmp_path):
  layers, width = 40, 512
  rng = np.random.default_rng(0)
  weights = made.tensors()
  names = [n for n in weights if '.layers.1.' in n]
  wide = {made.D: width, made.F: 4 * width, made.H * made.K: width}

  def draw(shape):
    return rng.standard_normal([wide.get(n, n) for n in shape], np.float32)

  whole = {n: draw(w.shape) for n, w in weights.items() if '.layers.' not in n}
  for layer in range(layers):
    for name in names:
      new = name.replace('.1.', f'.{layer}.')
      whole[new] = draw(weights[name].shape)
  size = sum(w.nbytes for w in whole.values())
  assert size > 500e6
  config = dict(hidden_size=width, intermediate_size=4 * width, head_dim=64)
  config |= dict(num_attention_heads=8, num_key_value_heads=8, num_hidden_layers=layers)
  given = made.write(tmp_path / 'given', 'float32', whole, **config)
  command = [sys.executable, '-c', _MEASURE, str(given), str(tmp_path / 'run')]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  # The weights, and the largest leaf, a quarter of them, while it is laid out.
  assert int(done.stdout) < 1.35 * size, done.stdout
