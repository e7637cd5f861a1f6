"""Adapters that `peft` loads, of a run from published weights and of drawn trees."""

import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file

from gptjax import export, sharding, train
from gptjax.interop import peft
from gptjax.models.lora import adapters, chosen, overlay
from gptjax.models.transformer import transformer
from gptjax.origin import find_origin, make_model
from gptjax.words import Mistake
from tests import tiny
from tests.interop import made


def silent(line):
  del line


def logits(origin, weights, tokens):
  model = make_model(origin.model, origin.tokenizer)
  hidden, _, _ = jax.jit(model.hidden)(weights, {'tokens': tokens})
  return np.asarray(model.heads['lm'](weights, hidden))[..., : origin.tokenizer.size]


def on_one():
  return sharding.use(sharding.make_mesh({'data': 1}, jax.devices()[:1]))


def drawn(model, base, patterns, rank, scale):
  """The weights with adapters drawn over the chosen products, both sides."""
  targets = chosen(model.axes, patterns)
  small = adapters(jax.random.key(0), base, targets, rank)
  keys = iter(jax.random.split(jax.random.key(1), 99))
  small = jax.tree.map(lambda x: 0.2 * jax.random.normal(next(keys), x.shape), small)
  return overlay(base, small, scale=scale)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of two steps with adapters over published weights; their folders."""
  folder = tmp_path_factory.mktemp('runs')
  given = made.write(folder / 'given', 'float32')
  corpus = tiny.write_corpus(folder)
  c = tiny.get_config(f'text={corpus},steps=2')
  with c.unlocked():
    c.init = f'hf:{given}'
    c.model = dict(name='transformer', dropout=0.0)
    c.lora.update(rank=2, alpha=3.0, dropout=0.1)
    c.evals = {}
    c.keep_best.metric = ''
    c.samples.every = 0
  train.train(c, str(folder / 'run'), say=silent)
  return given, folder / 'run'


def test_a_run_with_adapters_is_written_for_peft(run, tmp_path):
  given, folder = run
  export.convert(str(folder), f'hf:{tmp_path / "out"}', say=silent)
  told = json.loads((tmp_path / 'out' / peft.CONFIG).read_text())
  assert told['peft_type'] == 'LORA'
  assert told['base_model_name_or_path'] == str(given)
  assert (told['r'], told['lora_alpha'], told['lora_dropout']) == (2, 3.0, 0.1)
  assert 'q_proj' in told['target_modules']
  assert not told['rank_pattern']
  tensors = load_file(tmp_path / 'out' / peft.WEIGHTS)
  prefix = 'base_model.model.model.layers.1.self_attn.q_proj.'
  assert tensors[f'{prefix}lora_A.weight'].shape == (2, made.D)
  assert tensors[f'{prefix}lora_B.weight'].shape == (made.H * made.K, 2)
  assert (tmp_path / 'out' / 'tokenizer.json').exists()
  assert not (tmp_path / 'out' / 'model.safetensors').exists()


def test_merged_it_is_a_model_like_any_other(run, tmp_path):
  given, folder = run
  tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
  with on_one():
    origin = find_origin(str(folder))
    want = logits(origin, origin.weights()[1], tokens)
    apart = logits(origin, origin.adapted.weights()[1], tokens)
  np.testing.assert_allclose(apart, want, atol=1e-4)
  for start in ('hf:', 'gguf:', ''):
    target = f'{start}{tmp_path / (start[:2] or "run")}'
    if start != 'hf:':
      with pytest.raises(Mistake, match='holds adapters: --merge'):
        export.convert(str(folder), target, say=silent)
    export.convert(str(folder), target, merge=True, say=silent)
    with on_one():
      other = find_origin(target)
      np.testing.assert_array_equal(logits(other, other.weights()[1], tokens), want)
  card = (tmp_path / 'hf' / 'README.md').read_text()
  assert f'Started from: `hf:{given}`' in card
  assert 'Trained on: the tasks text; 2 steps' in card


def test_what_was_trained_beside_adapters_is_not_left_behind(run, tmp_path):
  _, folder = run
  copy = tmp_path / 'run'
  shutil.copytree(folder, copy)
  told = json.loads((copy / 'config.json').read_text())
  told['config']['lora']['also'] = ['norm/scale']
  (copy / 'config.json').write_text(json.dumps(told))
  with pytest.raises(Mistake, match='trained norm/scale beside its adapters'):
    export.convert(str(copy), f'hf:{tmp_path / "out"}', say=silent)


def test_without_adapters_there_is_nothing_to_write(tmp_path):
  model = transformer(preset='llama', vocab=128, layers=2, embed=16, heads=2)
  weights = model.init(jax.random.key(0))
  with pytest.raises(Mistake, match='no adapters'):
    peft.write_adapter(epath.Path(tmp_path), weights, 'llama', 'x', 0.0)


def test_adapters_of_some_layers_are_named_one_by_one(tmp_path):
  sizes = dict(vocab=128, layers=4, embed=16, heads=2, window=4)
  model = transformer(preset='gemma2', **sizes)
  base = model.init(jax.random.key(0))
  whole = drawn(model, base, ['layers/[02]/attention/query'], 2, 0.5)
  peft.write_adapter(epath.Path(tmp_path), whole, 'gemma2', 'x', 0.0)
  told = json.loads((tmp_path / peft.CONFIG).read_text())
  assert told['target_modules'] == [
    f'model.layers.{n}.self_attn.q_proj' for n in (0, 2)
  ]
  whole = drawn(model, base, ['query'], 2, 0.5)
  peft.write_adapter(epath.Path(tmp_path), whole, 'gemma2', 'x', 0.0)
  told = json.loads((tmp_path / peft.CONFIG).read_text())
  assert told['target_modules'] == ['q_proj']


PATTERNS = {
  'llama': ['query', 'value', 'down', 'out'],
  'gpt2_all': ['layers/*/attention/*', 'layers/*/mlp/*'],
  'gpt2_some': ['query', 'value'],
  'gpt_neo': ['key', 'up'],
  'gemma3': ['query', 'gate'],
  'some_layers': ['layers/[024]/attention/query'],
}


@pytest.mark.slow
@pytest.mark.parametrize('name', PATTERNS)
def test_peft_computes_the_same(tmp_path, name):
  torch = pytest.importorskip('torch', reason='needs the extra [parity]')
  hub = pytest.importorskip('peft', reason='needs the extra [parity]')
  transformers = pytest.importorskip('transformers', reason='needs [parity]')
  small = dict(vocab_size=made.vocab(), max_position_embeddings=40)
  gpt = dict(vocab_size=made.vocab(), n_positions=40, n_embd=24, n_layer=3, n_head=4)
  rope = dict(hidden_size=24, intermediate_size=36, num_hidden_layers=5)
  rope |= dict(num_attention_heads=4, num_key_value_heads=2, head_dim=10, **small)
  neo = dict(hidden_size=24, num_layers=4, num_heads=4, window_size=5, **small)
  neo['attention_types'] = [[['global', 'local'], 2]]
  makers = {
    'llama': lambda: transformers.LlamaConfig(**rope),
    'gpt2_all': lambda: transformers.GPT2Config(**gpt),
    'gpt2_some': lambda: transformers.GPT2Config(**gpt),
    'gpt_neo': lambda: transformers.GPTNeoConfig(**neo),
    'gemma3': lambda: transformers.Gemma3TextConfig(**rope, sliding_window=5),
    'some_layers': lambda: transformers.Gemma2Config(**rope, sliding_window=5),
  }
  theirs = transformers.AutoModelForCausalLM.from_config(makers[name]())
  with torch.no_grad():
    for w in theirs.parameters():
      w.add_(0.2 * torch.randn_like(w))
  given = made.write(tmp_path / 'given')  # Of it, the tokenizer.
  (given / 'model.safetensors').unlink()
  theirs.save_pretrained(given)
  with on_one():
    origin = find_origin(f'hf:{given}')
    model = make_model(origin.model, origin.tokenizer)
    whole = drawn(model, origin.weights()[1], PATTERNS[name], 3, 0.7)
    tokens = np.random.default_rng(0).integers(0, made.vocab(), (2, 30))
    want = logits(origin, whole, tokens.astype(np.int32))
    plain = logits(origin, origin.weights()[1], tokens.astype(np.int32))
  out = tmp_path / 'out'
  out.mkdir()
  kind = theirs.config.model_type
  peft.write_adapter(epath.Path(out), whole, kind, str(given), 0.1)
  base = transformers.AutoModelForCausalLM.from_pretrained(given, dtype=torch.float32)
  loaded = hub.PeftModel.from_pretrained(base, out).eval()
  with torch.no_grad():
    found = loaded(torch.tensor(tokens)).logits.numpy()
  np.testing.assert_allclose(found[..., : made.vocab()], want, atol=1e-4, rtol=0)
  assert np.abs(want - plain).max() > 0.1
