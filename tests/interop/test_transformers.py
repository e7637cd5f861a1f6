"""Exported folders and GGUF files in `transformers`: logits, ids, conversations."""

import json

import jax
import numpy as np
import pytest

from gptjax import checkpoint, export, files, folder, sharding
from gptjax.interop.smollm2 import find
from gptjax.models.transformer import transformer
from gptjax.origin import find_origin, make_model
from gptjax.run import open_run
from gptjax.tokenizers.sentencepiece import sentencepiece
from gptjax.words import Conversation, Mistake, Turn
from tests.interop import made
from tests.interop.strings import code, strings

torch = pytest.importorskip('torch', reason='parity needs the extra [parity]')
transformers = pytest.importorskip('transformers', reason='needs the extra [parity]')

pytestmark = pytest.mark.slow

SIZES = dict(layers=3, embed=36, heads=6, length=48)
GGUF = dict(  # Shapes that transformers reads from GGUF.
  llama=dict(preset='llama', kv_heads=3, head=10, mlp=52, tied=False, **SIZES),
  tied=dict(preset='llama', kv_heads=2, theta=500.0, **SIZES),
  gpt2=dict(preset='gpt', **SIZES),
)


def silent(line):
  del line


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  cache = tmp_path_factory.mktemp('tokenizers')
  return sentencepiece(code, vocab=700, cache=cache)


def write_run(path, tokenizer, **model):
  """A run with drawn weights, norms and biases too; its folder."""
  made_ = transformer(vocab=tokenizer.size, **model)
  keys = iter(jax.random.split(jax.random.key(0), 99))
  params = jax.tree.map(
    lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape),
    made_.init(jax.random.key(1)),
  )
  tokenizer.save(path / 'tokenizer')
  saves = checkpoint.open_checkpoints(path / 'checkpoints', say=silent)
  saves.save(0, {'params': params}, {}, {})
  saves.close()
  told = {'model': {'name': 'transformer', **model}, 'mixture': {'length': 48}}
  text = json.dumps({'format': folder.FORMAT, 'config': told})
  files.write(path / 'config.json', text)
  return path


def ours(name, tokens):
  with sharding.use(sharding.make_mesh({'data': 1}, jax.devices()[:1])):
    origin = find_origin(str(name))
    model = make_model(origin.model, origin.tokenizer)
    _, weights = origin.weights()
    hidden, _, _ = jax.jit(model.hidden)(weights, {'tokens': tokens})
    found = np.asarray(model.heads['lm'](weights, hidden))
    return found[..., : origin.tokenizer.size]


def theirs(model, tokens):
  with torch.no_grad():
    return model.eval()(torch.tensor(tokens)).logits.numpy()


def tokens_of(tokenizer):
  draw = np.random.default_rng(0)
  return draw.integers(0, tokenizer.size, (2, 40)).astype(np.int32)


@pytest.mark.parametrize('shape', GGUF)
def test_a_run_exports_to_a_folder(tmp_path, tokenizer, shape):
  run = write_run(tmp_path / 'run', tokenizer, **GGUF[shape])
  export.convert(str(run), f'hf:{tmp_path / "out"}', say=silent)
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  tokens = tokens_of(tokenizer)
  want = ours(run, tokens)
  found = theirs(model, tokens)
  assert found.shape == want.shape  # No padding of the vocabulary.
  np.testing.assert_allclose(found, want, atol=1e-4, rtol=0)
  assert np.ptp(want) > 1
  model.save_pretrained(tmp_path / 'again', max_shard_size='60KB')
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    (tmp_path / 'again' / name).write_bytes((tmp_path / 'out' / name).read_bytes())
  assert len(list((tmp_path / 'again').glob('*.safetensors'))) > 1
  np.testing.assert_array_equal(ours(f'hf:{tmp_path / "again"}', tokens), want)


@pytest.mark.parametrize('shape', GGUF)
def test_a_run_exports_to_gguf(tmp_path, tokenizer, shape):
  run = write_run(tmp_path / 'run', tokenizer, **GGUF[shape])
  export.convert(str(run), f'gguf:{tmp_path / "x.gguf"}', say=silent)
  more = dict(n_positions=48, vocab_size=tokenizer.size) if shape == 'gpt2' else {}
  model = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, gguf_file='x.gguf', dtype=torch.float32, **more
  )
  tokens = tokens_of(tokenizer)
  want = ours(run, tokens)
  np.testing.assert_allclose(theirs(model, tokens), want, atol=1e-5, rtol=1e-5)
  np.testing.assert_array_equal(ours(f'gguf:{tmp_path / "x.gguf"}', tokens), want)


def test_the_tokenizer_in_transformers_gives_our_ids(tmp_path, tokenizer):
  run = write_run(tmp_path / 'run', tokenizer, **GGUF['tied'])
  export.convert(str(run), f'hf:{tmp_path / "out"}', say=silent)
  loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  assert loaded.bos_token_id == tokenizer.start
  assert loaded.eos_token_id == tokenizer.end
  for text in strings():
    ids = tokenizer.encode(text).tolist()
    found = loaded(text, add_special_tokens=False, split_special_tokens=True)
    assert found['input_ids'] == ids, repr(text[:200])
    assert loaded.decode(ids) == text
  assert loaded('<|user|>', add_special_tokens=False)['input_ids'] == [
    tokenizer.controls['<|user|>']
  ]
  assert loaded('Hello')['input_ids'] == [tokenizer.start, *tokenizer.encode('Hello')]


def test_a_conversation_in_transformers_has_our_ids(tmp_path, tokenizer):
  run = write_run(tmp_path / 'run', tokenizer, **GGUF['tied'])
  export.convert(str(run), f'hf:{tmp_path / "out"}', say=silent)
  loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  turns = (Turn('system', 'Be brief.'), Turn('user', 'Who  are you?\n'))
  turns += (Turn('assistant', 'Me.'), Turn('user', 'And I?'))
  chat = [{'role': turn.role, 'content': turn.text} for turn in turns]
  found = loaded.apply_chat_template(chat, add_generation_prompt=True)
  template = find_origin(str(run)).template
  assert found['input_ids'] == template.prompt(Conversation(turns)).tolist()
  told = json.loads((tmp_path / 'out' / 'generation_config.json').read_text())
  assert set(told['eos_token_id']) == set(template.stops)


def test_the_byte_level_tokenizer_of_a_gguf_in_transformers(tmp_path):
  given = made.write(tmp_path / 'given', 'float32')
  export.convert(f'hf:{given}', f'gguf:{tmp_path / "x.gguf"}', say=silent)
  loaded = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file='x.gguf')
  tokenizer = find_origin(f'hf:{given}').tokenizer
  for text in strings(2000):
    if '<think>' not in text:
      found = loaded(text, add_special_tokens=False, split_special_tokens=True)
      assert found['input_ids'] == tokenizer.encode(text).tolist(), repr(text[:200])


@pytest.fixture(scope='module')
def smollm2():
  """The real weights, where the package index gives them."""
  try:
    return find(silent)
  except Mistake as mistake:
    pytest.skip(str(mistake))


def test_smollm2_says_what_transformers_says(smollm2):
  model = transformers.AutoModelForCausalLM.from_pretrained(
    smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
  )
  run = open_run('smollm2', say=silent)
  assert run.generate('The capital of France is', max_tokens=3).startswith(' Paris')
  ids = run.tokenizer.encode('The capital of France is').tolist()
  found = run.generate_all([ids], max_tokens=64, temperature=0.0, stop_ids=[])
  said = found[0].tokens
  # Given the tokens so far, each of ours is its likeliest: so its greedy text is ours.
  logits = theirs(model, [ids + said])[0]
  assert logits[len(ids) - 1 : -1].argmax(-1).tolist() == said
  assert len(said) == 64


def test_smollm2_goes_through_every_form(smollm2, tmp_path):
  """The 64 tokens again, of a folder and a file that were written from it."""
  prompt = 'The capital of France is'
  settings = dict(max_tokens=16, temperature=0.0)
  want = open_run('smollm2', say=silent).generate(prompt, **settings)
  export.convert('smollm2', str(tmp_path / 'run'), say=silent)
  export.convert(str(tmp_path / 'run'), f'hf:{tmp_path / "hf"}', say=silent)
  target = f'gguf:{tmp_path / "x.gguf"}'
  export.convert(f'hf:{tmp_path / "hf"}', target, say=silent)
  for name in (str(tmp_path / 'run'), f'hf:{tmp_path / "hf"}', target):
    assert open_run(name, say=silent).generate(prompt, **settings) == want
  loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
  assert loaded.eos_token == '<|im_end|>'
  chat = [{'role': 'user', 'content': 'Hi'}]
  text = loaded.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
  assert text.endswith('<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n')
  ours_ = open_run('smollm2', say=silent).tokenizer
  for line in strings(3000):
    found = loaded(line, add_special_tokens=False, split_special_tokens=True)
    assert found['input_ids'] == ours_.encode(line).tolist()
