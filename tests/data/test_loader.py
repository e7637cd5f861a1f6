import collections
import gc
import itertools
import threading
import time

import jax
import numpy as np
import pytest

from gptjax import sharding
from gptjax.data import loader, rows, shards, tokens
from gptjax.words import Failure, Mistake, Source
from tests.data.fakes import TOKENIZER, Lines, documents, words

TASKS = {'a': (words(300, 1, 'a'), 3.0), 'b': (words(40, 2, 'b', longest=200), 1.0)}


def make(tasks=TASKS, length=64, batch_size=8, window=50, **settings):
  return loader.make_source(
    tasks,
    TOKENIZER,
    length=length,
    batch_size=batch_size,
    window=window,
    **settings,
  )


def take(source, count):
  """Batches in NumPy."""
  return [{k: np.asarray(x) for k, x in source.next().items()} for _ in range(count)]


def joined(batches):
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def assert_equal(a, b, but=()):
  assert a.keys() == b.keys()
  for key in a.keys() - set(but):
    assert (a[key] == b[key]).all(), key


@pytest.mark.parametrize('packing', ['best_fit', 'concat'])
def test_same_rows_on_1_2_and_4_hosts(packing):
  whole = take(make(packing=packing), 30)
  assert [b['rows'].tolist() for b in whole] == [list(range(8))] * 30
  for hosts in (2, 4):
    sources = [make(packing=packing, hosts=hosts, host=h) for h in range(hosts)]
    for batch in whole:
      parts = [take(source, 1)[0] for source in sources]
      assert all(len(p['tokens']) == 8 // hosts for p in parts)
      assert_equal(joined(parts), batch)
    states = [source.get_state() for source in sources]
    assert states == [states[0]] * hosts


def test_resume_on_other_hosts_loses_and_doubles_no_row():
  whole = joined(take(make(), 60))
  found, state, used = [], None, 0
  for hosts, steps in ((1, 7), (4, 13), (2, 1), (1, 39)):
    sources = [make(hosts=hosts, host=h) for h in range(hosts)]
    for source in sources:
      if state:
        source.set_state(state)
    for _ in range(steps):
      found.append(joined([take(source, 1)[0] for source in sources]))
    state, used = sources[-1].get_state(), used + steps
    assert state['rows'] == 8 * used
  assert_equal(joined(found), whole)


def test_resume_with_another_batch_size_goes_on_at_the_same_row():
  whole = joined(take(make(), 20))
  first = make()
  found = take(first, 5)
  second = make(batch_size=10)
  second.set_state(first.get_state())
  assert_equal(joined(found + take(second, 12)), whole, but=['rows'])


def test_state_speaks_of_the_batch_returned_not_of_those_made_ahead():
  source = make(prefetch=6)
  states = [source.get_state()]
  batches = []
  for _ in range(12):
    batches += take(source, 1)
    time.sleep(0.01)
    states.append(source.get_state())
  for n, state in enumerate(states[:-1]):
    source.set_state(state)
    assert source.get_state() == state
    assert_equal(take(source, 1)[0], batches[n])


def test_resume_far_on_plans_nothing_before():
  source = make()
  state = dict(source.get_state(), rows=10**9 + 3, window=12_345_678, window_row=10**9)
  begin = time.perf_counter()
  source.set_state(state)
  source.next()
  assert time.perf_counter() - begin < 2
  assert source.get_state()['rows'] == 10**9 + 11


def test_an_epoch_has_every_token_once():
  task = words(257, 3, longest=90)  # Documents of up to 360 bytes, rows of 50.
  wanted = collections.Counter()
  for text in task.texts:
    ids = [TOKENIZER.start, *text.encode(), TOKENIZER.end]
    wanted.update(itertools.pairwise(ids))
  # A window of the size of an epoch holds each unit of the epoch once.
  cuts = -(-(np.array([len(t) for t in task.texts]) + 1) // 50)
  ready = rows.make_rows(
    {'x': (tokens.in_memory(task, TOKENIZER), 1.0)}, length=50, units=int(cuts.sum())
  )
  orders = []
  for epoch in range(3):
    place = rows.Place(0, 0)
    for _ in range(epoch):
      place = rows.Place(place.window + 1, place.row + ready.window(place.window).rows)
    stop = place.row + ready.window(epoch).rows
    batch = rows.read(ready, place.row, stop, place)
    real = batch['segments'] > 0
    pairs = zip(
      batch['tokens'][real].tolist(), batch['targets'][real].tolist(), strict=True
    )
    assert collections.Counter(pairs) == wanted
    orders.append(batch['tokens'].tobytes())
  assert len(set(orders)) == 3


def test_segments_are_runs_of_their_documents():
  texts = {t for task, _ in TASKS.values() for t in task.texts}
  batch = joined(take(make(length=80), 20))
  whole = 0
  for _, inputs, targets in documents(batch):
    assert inputs[1:] == targets[:-1]
    text = TOKENIZER.decode(inputs[1:])
    if inputs[0] == TOKENIZER.start and targets[-1] == TOKENIZER.end:
      assert text in texts
      whole += 1
    else:
      assert any(TOKENIZER.decode(inputs) in t for t in texts)
  assert whole > 20


def test_weights_are_shares_of_tokens():
  source = make(batch_size=32, length=128)
  batches = take(source, 60)
  stats = source.stats()
  size = {n: tokens.in_memory(TASKS[n][0], TOKENIZER).targets for n in 'ab'}
  drawn = {n: stats[f'epochs/{n}'] * size[n] for n in 'ab'}
  assert drawn['a'] / sum(drawn.values()) == pytest.approx(0.75, abs=0.01)
  real = sum((b['segments'] > 0).sum() for b in batches)
  assert sum(drawn.values()) == pytest.approx(real, rel=0.02)
  assert stats['padding'] == pytest.approx(1 - real / (60 * 32 * 128))


def test_it_says_what_each_task_holds():
  said = []
  texts = Lines(['a' * 30, 'é' * 20])
  texts.skipped = 1234
  make(tasks={'mine': (texts, 1.0), 'b': TASKS['b']}, length=16, say=said.append)
  # Bytes and an end each.
  assert said[0] == (
    'mine: 2 documents, 72 tokens, 0.97 bytes per token; 1,234 bad ones skipped.'
  )
  assert said[1].startswith('b: ')
  assert said[1].endswith('bytes per token.')


def test_without_weights_all_tasks_have_their_epochs_together():
  tasks = {name: (task, None) for name, (task, _) in TASKS.items()}
  source = make(tasks, batch_size=32, length=128, epochs={'b': 3})
  take(source, 60)
  stats = source.stats()
  assert stats['epochs/b'] == pytest.approx(3 * stats['epochs/a'], rel=0.02)


def test_shards_and_memory_give_the_same_rows(tmp_path):
  settings = dict(length=48, packing='concat', seed=3)
  memory = take(make(**settings), 10)
  mapped = take(make(**settings, shards=tmp_path), 10)
  assert_equal(joined(memory), joined(mapped))


def test_seed_length_weight_data_and_tokenizer_are_in_the_digest():
  def digest(tasks=TASKS, **settings):
    return make(tasks, **settings).get_state()['digest']

  assert digest() == digest(batch_size=4, prefetch=1, hosts=2, host=1)
  others = [
    digest(seed=1),
    digest(length=65),
    digest(packing='concat'),
    digest(window=51),
    digest({**TASKS, 'a': (TASKS['a'][0], 3.5)}),
    digest({**TASKS, 'a': (words(301, 1, 'a'), 3.0)}),
  ]
  assert len({digest(), *others}) == 7


def test_other_data_are_refused_unless_told():
  source, other = make(), make(seed=1)
  state = source.get_state() | {'rows': 80}
  with pytest.raises(Mistake, match='the data differ from those of the checkpoint'):
    other.set_state(state)
  told = make(seed=1, changed=True)
  told.set_state(state)
  assert_equal(joined(take(told, 2)), joined(take(other, 12)[10:]))


def test_an_error_of_the_thread_surfaces_in_next_every_time(tmp_path):
  source = make(shards=tmp_path)
  (folder,) = tmp_path.glob('a-*')
  path = folder / '00000.tokens'
  data = bytearray(path.read_bytes())
  data[10] ^= 1
  path.write_bytes(data)
  for _ in range(2):
    with pytest.raises(Failure, match='damaged') as failure:
      source.next()
    assert str(path) in str(failure.value)
  assert source.get_state()['rows'] == 0


def threads():
  return [t for t in threading.enumerate() if t.name == 'gptjax-batches']


def test_the_thread_ends_with_its_source():
  before = len(threads())
  closed, collected = make(), make()
  first = take(closed, 3)
  collected.next()
  assert len(threads()) == before + 2
  closed.close()
  assert len(threads()) == before + 1
  del collected
  gc.collect()
  assert len(threads()) == before
  # A closed source goes on when asked again, after the batch last returned.
  assert_equal(joined(first + take(closed, 2)), joined(take(make(), 5)))


def test_waiting_is_counted(monkeypatch):
  slow = rows.read

  def read(*args):
    time.sleep(0.05)
    return slow(*args)

  monkeypatch.setattr(rows, 'read', read)
  source = make(prefetch=1)
  take(source, 4)
  assert source.waited > 0.1
  time.sleep(0.3)
  waited = source.waited
  source.next()
  assert source.waited - waited < 0.04


def test_a_batch_is_laid_out_over_the_mesh():
  with sharding.use(sharding.make_mesh({'data': 4, 'fsdp': 2})):
    batch = make().next()
    split = loader.eval_batches(TASKS['a'][0], TOKENIZER, 64, 8)
    for b in (batch, next(iter(split.batches))):
      assert all(len(x.sharding.device_set) == 8 for x in b.values())
      assert b['tokens'].addressable_shards[0].data.shape == (1, 64)
      assert isinstance(b['rows'], jax.Array)


def test_it_is_a_source_that_never_asks_for_weights():
  source: Source = make()
  assert set(source.next(lambda: pytest.fail('weights were made'))) == {
    *('tokens', 'targets', 'weights', 'positions', 'segments', 'rows')
  }


@pytest.mark.parametrize(
  ('settings', 'line'),
  [
    (dict(tasks={}), r'c\.mixture\.tasks is empty'),
    (dict(tasks={'a': (words(9, 1), 0)}), r'tasks\.a\.weight=0'),
    (dict(tasks={'a': (Lines(['hi']), 1.0)}), 'less than one row .*paragraph'),
    (dict(tasks={'a': (Lines([]), 1.0)}), 'no documents'),
    (dict(packing='best'), r"c\.mixture\.packing: 'best' unknown: did you mean"),
    (dict(window=0), r'c\.mixture\.window=0'),
    (dict(length=0), r'c\.mixture\.length=0'),
    (dict(batch_size=6, hosts=4, host=0), r'c\.batch_size=6 is no multiple of .* 4'),
  ],
)
def test_mistakes(settings, line):
  with pytest.raises(Mistake, match=line):
    make(**settings)


@pytest.mark.parametrize('hosts', [1, 2])
def test_evaluation_has_every_token_once(hosts):
  task = words(123, 4, longest=100)
  split, *_ = splits = [
    loader.eval_batches(task, TOKENIZER, 50, 6, hosts=hosts, host=h)
    for h in range(hosts)
  ]
  for _ in range(2):  # Again at each iteration.
    parts = [list(s.batches) for s in splits]
    assert len({len(p) for p in parts}) == 1
    assert len(parts[0]) == len(split.batches)
    batch = {
      k: np.concatenate(
        [np.asarray(b[k]) for step in zip(*parts, strict=True) for b in step]
      )
      for k in parts[0][0]
    }
    assert batch['tokens'].shape == (6 * len(split.batches), 50)
    found = collections.Counter((tuple(i), tuple(t)) for _, i, t in documents(batch))
    wanted = collections.Counter()
    for text in task.texts:
      ids = [TOKENIZER.start, *text.encode(), TOKENIZER.end]
      for a in range(0, len(ids) - 1, 50):
        b = min(a + 50, len(ids) - 1)
        wanted[tuple(ids[a:b]), tuple(ids[a + 1 : b + 1])] += 1
    assert found == wanted
    assert batch['weights'].sum() == split.tokens
  assert split.bytes == sum(len(t.encode()) for t in task.texts)
  assert split.tokens == split.bytes + len(task)


def test_evaluation_through_shards(tmp_path):
  task = words(50, 5)
  a = loader.eval_batches(task, TOKENIZER, 50, 4)
  b = loader.eval_batches(task, TOKENIZER, 50, 4, shards=tmp_path)
  assert (a.bytes, a.tokens) == (b.bytes, b.tokens)
  for x, y in zip(a.batches, b.batches, strict=True):
    assert_equal(x, y)


def test_evaluation_of_too_little():
  with pytest.raises(Mistake, match='less than one row'):
    loader.eval_batches(Lines(['hi']), TOKENIZER, 64, 2)


def test_a_long_document_is_cut_elsewhere_in_each_epoch():
  task = Lines(['0123456789' * 13])  # 131 pairs: rows of 50, 50 and 31.
  ready = rows.make_rows(
    {'x': (tokens.in_memory(task, TOKENIZER), 1.0)}, length=50, units=3
  )
  cuts = set()
  for window in range(20):
    plan = ready.window(window)
    spans = sorted(zip(plan.start.tolist(), plan.stop.tolist(), strict=True))
    assert spans[0][0] == 0
    assert spans[-1][1] == 131
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    cuts.add(tuple(spans))
  assert len(cuts) > 8


def test_make_rows_reads_tokens_of_many_parts(tmp_path):
  task = words(200, 6)
  shards.write(task, TOKENIZER, tmp_path, count=13)
  many = shards.open_shards(tmp_path)
  one = tokens.in_memory(task, TOKENIZER)
  a = rows.make_rows({'x': (many, 1.0), 'y': (one, 1.0)}, length=40)
  b = rows.make_rows({'x': (one, 1.0), 'y': (many, 1.0)}, length=40)
  assert a.digest == b.digest
  assert_equal(rows.read(a, 0, 300), rows.read(b, 0, 300))
