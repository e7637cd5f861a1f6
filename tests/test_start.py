"""Runs that start from another run's weights: adapters, frozen leaves, new heads."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from experiments import common
from gptjax import origin, run, sharding, train, tree
from gptjax.data import loader
from gptjax.words import Mistake
from tests import crash, tiny


def quiet(line):
  pass


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  return tiny.write_corpus(tmp_path_factory.mktemp('corpus'))


def config(corpus, **changes):
  c = tiny.get_config(f'text={corpus}')
  with c.unlocked():
    c.update(changes)
  if not c.evals:
    c.keep_best.metric = ''  # No evaluation gives it.
  return c


def short(corpus, **changes):
  """A run of a few steps that starts from another."""
  few = dict(steps=6, evals={}, save_every=2, log_every=1)
  c = config(corpus, **few | changes)
  c.samples.every = 0
  return c


LORA = dict(rank=2, alpha=8.0, dropout=0.2)


@pytest.fixture(scope='module')
def base(corpus, tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs') / 'base'
  c = config(corpus, steps=16, evals={})
  c.samples.every = 0
  train.train(c, str(folder), say=quiet)
  return folder


@pytest.fixture(scope='module')
def adapted(corpus, base):
  """A run with adapters, never interrupted; and what it said."""
  said, folder = [], base.parent / 'adapted'
  train.train(short(corpus, init=str(base), lora=LORA), str(folder), say=said.append)
  return folder, said


def leaves(folder, step=''):
  found = run.open_run(folder, step, say=quiet).weights
  return {path: np.asarray(x) for path, x in tree.paths(found).items()}


def test_only_the_adapters_are_in_the_checkpoint_and_the_base_stays(adapted, base):
  folder, said = adapted
  manifest = json.loads((folder / 'checkpoints' / '6' / 'MANIFEST.json').read_text())
  params = [path for path in manifest['leaves'] if path.startswith('params/')]
  assert len(params) == 14
  assert all(path.endswith(('/a', '/b')) for path in params)
  assert any('30,880 parameters of the base are not trained' in x for x in said)
  found = json.loads((folder / 'frozen.json').read_text())['base']
  assert found['name'] == str(base)
  assert found['step'] == 16
  # Merged where adapters are, and elsewhere the base to the bit.
  mine, theirs = leaves(folder), leaves(base)
  assert mine.keys() == theirs.keys()
  for path, leaf in theirs.items():
    same = np.array_equal(leaf, mine[path])
    assert same == ('norm' in path or 'embed' in path), path


def test_interrupted_it_ends_as_if_unbroken(
  adapted, corpus, base, tmp_path, monkeypatch
):
  draw, drawn = loader.DataSource.next, []

  def drawing(self, weights=None):
    drawn.append(1)
    if len(drawn) in (2, 6):  # Before the first checkpoint, and after the second.
      raise RuntimeError('the machine is gone')
    return draw(self, weights)

  c = short(corpus, init=str(base), lora=LORA)
  with monkeypatch.context() as patch:
    patch.setattr(loader.DataSource, 'next', drawing)
    for _ in range(2):
      with pytest.raises(RuntimeError, match='is gone'):
        train.train(c, str(tmp_path / 'run'), say=quiet)
  said = []
  train.train(c, str(tmp_path / 'run'), say=said.append)
  assert any('Going on from step 2 ' in line for line in said), said
  truth, found = crash.outcome(adapted[0]), crash.outcome(tmp_path / 'run')
  assert found == truth


@pytest.mark.slow
def test_on_a_mesh_in_parts_it_ends_the_same(adapted, corpus, base, tmp_path):
  mesh = dict(data=2, fsdp=2, tensor=2)
  c = short(corpus, init=str(base), lora=LORA, mesh=mesh, microbatches=2)
  train.train(c, str(tmp_path / 'run'), say=quiet)
  truth, found = leaves(adapted[0]), leaves(tmp_path / 'run')
  for path, leaf in truth.items():
    np.testing.assert_allclose(found[path], leaf, atol=5e-5, err_msg=path)


def test_a_base_that_changed_is_refused_with_both_digests(
  adapted, corpus, base, tmp_path
):
  (tmp_path / 'runs').mkdir()
  for name in ('base', 'adapted'):
    shutil.copytree(base.parent / name, tmp_path / 'runs' / name)
  folder, known = tmp_path / 'runs' / 'adapted', tmp_path / 'runs' / 'base'
  noted = json.loads((folder / 'frozen.json').read_text())
  noted['base']['name'] = '/nowhere/base'  # Both were moved: it lies beside the run.
  (folder / 'frozen.json').write_text(json.dumps(noted))
  np.testing.assert_array_equal(
    leaves(folder)['norm/scale'], leaves(adapted[0])['norm/scale']
  )
  other = short(corpus, steps=16, seed=1)
  train.train(other, str(known), fresh=True, say=quiet)
  before = noted['base']['digest']
  with pytest.raises(Mistake, match=f'sha256 {before} and have [0-9a-f]{{64}};'):
    run.open_run(folder, say=quiet)
  c = short(corpus, steps=8, init=str(base), lora=LORA)
  with pytest.raises(Mistake, match=before):
    train.train(c, str(folder), say=quiet)
  shutil.rmtree(known / 'checkpoints' / '16')
  with pytest.raises(Mistake, match='16'):
    run.open_run(folder, say=quiet)
  shutil.rmtree(known)
  with pytest.raises(Mistake, match=r'stands on /nowhere/base: .* is no run folder'):
    run.open_run(folder, say=quiet)
  (folder / 'frozen.json').write_text('{')
  with pytest.raises(Mistake, match=r'frozen.json is damaged'):
    run.open_run(folder, say=quiet)
  (folder / 'frozen.json').unlink()
  with pytest.raises(Mistake, match=r'has no frozen.json'):
    run.open_run(folder, say=quiet)


def test_a_run_may_start_from_a_run_with_adapters(adapted, corpus, tmp_path):
  c = short(corpus, steps=1, init=str(adapted[0]))
  c.optim.lr = 0.0
  train.train(c, str(tmp_path / 'run'), say=quiet)
  truth, found = leaves(adapted[0]), leaves(tmp_path / 'run')
  for path, leaf in truth.items():
    np.testing.assert_array_equal(found[path], leaf, err_msg=path)
  assert not (tmp_path / 'run' / 'frozen.json').exists()


@pytest.mark.slow
def test_adapters_go_on_in_another_folder(adapted, corpus, base, tmp_path):
  c = short(corpus, init=str(base), lora=LORA)
  c.optim.decay = 'constant'
  c.steps = 4
  train.train(c, str(tmp_path / 'a'), say=quiet)
  with c.unlocked():
    c.update(dict(steps=6, init=None, resume=str(tmp_path / 'a')))
  train.train(c, str(tmp_path / 'b'), say=quiet)
  with c.unlocked():
    c.update(dict(resume=None, init=str(base)))
  train.train(c, str(tmp_path / 'a'), say=quiet)
  one, two = leaves(tmp_path / 'a'), leaves(tmp_path / 'b')
  for path, leaf in one.items():
    np.testing.assert_array_equal(leaf, two[path], err_msg=path)


def test_a_new_head_is_drawn_and_said_and_one_of_no_use_is_dropped(
  corpus, base, tmp_path
):
  said = []
  c = short(corpus, steps=1, init=str(base))
  with c.unlocked():
    c.model.outputs = ('lm', 'classes')
    c.model.classes = 3
  c.optim.lr = 0.0
  train.train(c, str(tmp_path / 'a'), say=said.append)
  drawn = [line for line in said if line.startswith('Drawn anew')]
  assert len(drawn) == 1
  assert 'heads/classes, heads/classes_bias' in drawn[0]
  found = leaves(tmp_path / 'a')
  assert found['heads/classes'].shape == (32, 3)
  assert found['heads/classes'].std() > 0
  np.testing.assert_array_equal(found['embed/tokens'], leaves(base)['embed/tokens'])
  said.clear()
  c = short(corpus, steps=1, init=str(tmp_path / 'a'))
  with c.unlocked():
    c.model.outputs = ('lm',)
  train.train(c, str(tmp_path / 'b'), say=said.append)
  assert any('not used: heads/classes, heads/classes_bias' in x for x in said), said
  said.clear()
  c = short(corpus, steps=1, init=str(tmp_path / 'a'))
  with c.unlocked():
    c.model.classes = 5  # Of another shape: another head.
  train.train(c, str(tmp_path / 'c'), say=said.append)
  assert any('Drawn anew' in x for x in said), said


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(embed=16), r'embed/tokens is \[384, 32\] there and \[384, 16\] here'),
    (dict(qk_norm=True), 'key_norm is missing there'),
    (dict(layers=1), 'missing here'),
  ],
)
def test_trunks_that_differ_are_refused(corpus, base, tmp_path, changes, message):
  c = short(corpus, init=str(base))
  with c.unlocked():
    c.model.update(changes)
  with pytest.raises(Mistake, match=message):
    train.train(c, str(tmp_path / 'run'), say=quiet)


def test_a_frozen_leaf_that_the_origin_lacks_is_refused(corpus, base, tmp_path):
  c = short(corpus, init=str(base), lora=LORA)
  with c.unlocked():
    c.model.tied = False
  with pytest.raises(Mistake, match=r'heads/lm is drawn anew .*c.lora.also'):
    train.train(c, str(tmp_path / 'run'), say=quiet)


def test_weights_of_another_dtype_become_those_of_parameters(corpus, base):
  half = origin.find_origin(str(base))
  model = origin.make_model(half.model, half.tokenizer)

  def weights():
    number, found = origin.find_origin(str(base)).weights()
    return number, jax.tree.map(lambda x: x.astype('bfloat16'), found)

  with sharding.use(sharding.make_mesh({'fsdp': 2}, jax.devices()[:2])):
    fitted = origin.fit(half._replace(weights=weights), model)
  assert {str(x.dtype) for x in fitted.leaves.values()} == {'float32'}
  assert len(fitted.leaves['embed/tokens'].sharding.device_set) == 2
  assert isinstance(base, pathlib.Path)


@pytest.fixture(scope='module')
def talks(tmp_path_factory):
  """A file of conversations in which one answer follows from the question."""
  file = tmp_path_factory.mktemp('talks') / 'talks.jsonl'
  lines = []
  for n in range(240):
    word = 'ab'[n % 2]
    said = [('user', f'{word} {n}'), ('assistant', 3 * word)]
    messages = [{'role': role, 'content': text} for role, text in said]
    lines.append(json.dumps({'messages': messages}))
  file.write_text('\n'.join(lines))
  return file


def test_adapters_lower_the_loss_of_answers_and_the_best_is_kept(base, talks, tmp_path):
  digest = tree.digest(leaves(base))
  c = tiny.get_config('text=none')
  with c.unlocked():
    tasks = dict(talk=dict(name='conversations', path=str(talks), weight=1.0))
    c.mixture = common.mixture(tasks, length=64)
    c.evals = common.evals_of(tasks, name='perplexity', every=10)
    c.update(dict(init=str(base), lora=dict(rank=4, alpha=16.0), steps=30))
    metric = 'val_talk/nats_per_token'
    c.keep_best.metric = c.early_stop.metric = metric
    c.optim.lr = 3e-2
    c.save_every, c.samples.every = 0, 0
  folder = tmp_path / 'run'
  result = train.train(c, str(folder), say=quiet)
  said = (folder / 'metrics.jsonl').read_text().splitlines()
  said = [json.loads(line) for line in said]
  found = [x[metric] for x in said if metric in x]
  assert len(found) == 3
  assert found[-1] < said[0]['train/loss'] - 1  # Before the first update.
  assert result[metric] == found[-1]
  assert tree.digest(leaves(base)) == digest
  assert run.open_run(folder, say=quiet).step == 10 * (1 + int(np.argmin(found)))
