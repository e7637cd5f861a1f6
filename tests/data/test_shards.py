import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from gptjax.data import shards, tokens
from gptjax.words import Failure, Mistake, Pair
from tests import fakefs
from tests.data.fakes import TOKENIZER, Lines, words


def write(task, folder, count=20, workers=0, tokenizer=TOKENIZER):
  shards.write(task, tokenizer, folder, count=count, workers=workers)
  return shards.open_shards(folder, tokens.data_digest(task, tokenizer))


def ids(found):
  """Every document's ids."""
  spans = zip(found.parts, found.offsets, found.lengths, strict=True)
  return [found.part(int(p))[o : o + n].tolist() for p, o, n in spans]


def read(folder, parts):
  found = shards.open_shards(folder)
  return [found.part(part) for part in parts]


def same(a, b):
  assert ids(a) == ids(b)
  assert (a.bytes, a.targets, a.digest) == (b.bytes, b.targets, b.digest)


def test_memory_holds_start_tokens_end():
  task = Lines(['ab', '', 'é'])
  found = tokens.in_memory(task, TOKENIZER)
  start, end = TOKENIZER.start, TOKENIZER.end
  assert ids(found) == [[start, 97, 98, end], [start, end], [start, 195, 169, end]]
  assert (found.bytes, found.targets) == (4, 4 + 3)
  assert found.part(0).dtype == np.uint16


def test_shards_equal_memory_and_workers_change_nothing(tmp_path):
  task = words(95, seed=1)
  inline = write(task, tmp_path / 'a')
  same(inline, tokens.in_memory(task, TOKENIZER))
  spread = write(task, tmp_path / 'b', workers=2)
  same(inline, spread)
  for file in (tmp_path / 'a').iterdir():
    assert file.read_bytes() == (tmp_path / 'b' / file.name).read_bytes()
  assert len(list((tmp_path / 'a').glob('*.tokens'))) == 5
  assert isinstance(inline.part(0).base, np.memmap)


def test_size_chooses(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  task = words(60, seed=2)
  small = shards.tokenize(task, TOKENIZER)
  assert not (tmp_path / 'cache').exists()
  large = shards.tokenize(task, TOKENIZER, small=100, shard=1000, workers=0)
  same(small, large)
  assert list((tmp_path / 'cache').glob('gptjax/tokens/lines-*/index.json'))
  given = shards.tokenize(task, TOKENIZER, tmp_path / 'mine')
  same(small, given)
  assert list((tmp_path / 'mine').glob('lines-*/index.json'))


def test_a_second_start_tokenizes_nothing_and_other_data_share_nothing(tmp_path):
  task = words(40, seed=3)
  first = shards.tokenize(task, TOKENIZER, tmp_path)

  class Never(type(TOKENIZER)):
    def encode(self, text):
      raise AssertionError('tokenized again')

  never = Never(**{f: getattr(TOKENIZER, f) for f in TOKENIZER.__dataclass_fields__})
  same(first, shards.tokenize(task, never, tmp_path))
  other = shards.tokenize(words(40, seed=4), TOKENIZER, tmp_path)
  assert ids(other) != ids(first)
  assert len(list(tmp_path.iterdir())) == 2


def test_only_what_is_missing_is_written_again(tmp_path):
  task = words(95, seed=5)
  before = ids(write(task, tmp_path))
  stamp = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
  (tmp_path / '00001.tokens').unlink()
  (tmp_path / '00003.json').unlink()
  (tmp_path / '.00002.tokens.99').write_bytes(b'left behind by a kill')
  assert ids(write(task, tmp_path)) == before
  new = {p.name for p in tmp_path.glob('0*') if p.stat().st_mtime_ns != stamp[p.name]}
  assert new == {f'0000{n}.{kind}' for n in (1, 3) for kind in SUFFIXES}


SUFFIXES = ('tokens', 'lengths', 'json')

KILLED = """
import sys, time
from gptjax.data import shards
from tests.data.fakes import TOKENIZER, words

class Slow(type(words(1, 1))):
  def example(self, index):
    time.sleep(0.004)
    return super().example(index)

task = Slow(words(200, seed=6).texts, 'lines')
if __name__ == '__main__':
  shards.write(
    task,
    TOKENIZER,
    sys.argv[1],
    count=20,
    workers=1,
    say=lambda line: print(line, flush=True),
  )
"""


def alive(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().split()[2] != 'Z'
  except FileNotFoundError:
    return False


def test_a_killed_writer_is_finished_by_the_next(tmp_path):
  child = subprocess.Popen(
    [sys.executable, '-c', KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
  )
  lines = [child.stdout.readline() for _ in range(4)]
  family = pathlib.Path(f'/proc/{child.pid}/task/{child.pid}/children')
  workers = family.read_text().split() if family.exists() else []
  child.send_signal(signal.SIGKILL)
  child.wait()
  until = time.monotonic() + 20
  while any(alive(worker) for worker in workers):
    assert time.monotonic() < until, 'its workers live on'
    time.sleep(0.05)
  assert 'shard 3 of 10' in lines[-1], lines
  assert not (tmp_path / 'index.json').exists()
  kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob('0000[012].*')}
  assert len(kept) == 9
  task = words(200, seed=6)
  same(write(task, tmp_path), tokens.in_memory(task, TOKENIZER))
  assert {p: p.stat().st_mtime_ns for p in kept} == kept


@pytest.mark.parametrize('name', ['00002.tokens', '00002.lengths'])
@pytest.mark.parametrize('harm', ['cut', 'flip', 'gone'])
def test_a_damaged_file_is_named_with_its_cure(tmp_path, name, harm):
  task = words(95, seed=7)
  write(task, tmp_path)
  path = tmp_path / name
  data = bytearray(path.read_bytes())
  if harm == 'cut':
    path.write_bytes(data[:-2])
  elif harm == 'flip':
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
  else:
    path.unlink()
  with pytest.raises(Failure) as failure:
    read(tmp_path, [0, 1, 3, 4, 2])  # Others than 2 are as good as before.
  line = str(failure.value)
  assert str(path) in line
  assert 'delete this file' in line
  assert '\n' not in line
  # The cure works.
  path.unlink(missing_ok=True)
  same(write(task, tmp_path), tokens.in_memory(task, TOKENIZER))


def test_tokenize_follows_the_cure_by_itself(tmp_path):
  task = words(50, seed=8)
  first = ids(shards.tokenize(task, TOKENIZER, tmp_path))
  (folder,) = tmp_path.iterdir()
  (folder / '00000.tokens').unlink()
  assert ids(shards.tokenize(task, TOKENIZER, tmp_path)) == first


def test_any_changed_digit_of_the_index_shows(tmp_path):
  write(words(30, seed=9), tmp_path)
  path = tmp_path / 'index.json'
  index = json.loads(path.read_text())
  index['bytes'] += 1
  path.write_text(json.dumps(index))
  with pytest.raises(Failure, match=r'index\.json is missing, damaged'):
    shards.open_shards(tmp_path)


def test_other_digest(tmp_path):
  write(words(30, seed=9), tmp_path)
  with pytest.raises(Failure, match='other data or another tokenizer'):
    shards.open_shards(tmp_path, 'f' * 64)


def test_no_documents_and_no_text():
  with pytest.raises(Mistake, match='lines: no documents'):
    shards.tokenize(Lines([]), TOKENIZER)
  task = Lines(['a'])
  task.example = lambda index: Pair(None, 'a', 'b')
  with pytest.raises(Mistake, match='example 0 is of type Pair'):
    shards.tokenize(task, TOKENIZER)


def test_an_id_outside_the_vocabulary_is_found():
  class Wrong:
    name, size, start, end, digest = 'wrong', 10, 8, 9, 'w'

    def encode(self, text):
      return np.array([3, 10], np.int32)

  with pytest.raises(Mistake, match='ids from 3 to 10, but has 10'):
    tokens.encode(['a'], Wrong())


@pytest.mark.skipif(os.geteuid() == 0, reason='root writes everywhere')
def test_a_read_only_folder(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(Failure, match='cannot write shards'):
    write(words(5, seed=1), tmp_path / 'x')


def test_a_file_where_the_folder_should_be(tmp_path):
  (tmp_path / 'x').write_text('')
  with pytest.raises(Failure, match='cannot write shards'):
    write(words(5, seed=1), tmp_path / 'x')


def test_a_bad_record_ends_the_writing_with_its_own_line(tmp_path):
  task = words(30, seed=1)
  good = task.example

  def example(index):
    if index == 25:
      raise Mistake('a.jsonl:26: no field text')
    return good(index)

  task.example = example
  with pytest.raises(Mistake, match=r'a\.jsonl:26'):
    write(task, tmp_path)
  task.example = good
  same(write(task, tmp_path), tokens.in_memory(task, TOKENIZER))


def test_a_store_without_rename():
  fakefs.clear()
  task, folder = words(45, seed=2), epath.Path('fake://bucket/shards')
  found = shards.tokenize(task, TOKENIZER, folder, shard=900)
  assert max(found.parts) > 2
  same(found, tokens.in_memory(task, TOKENIZER))
  same(found, shards.tokenize(task, TOKENIZER, folder, shard=900))
  name = next(n for n in fakefs.STORE if n.endswith('00001.tokens'))
  data = bytearray(fakefs.STORE[name])
  data[7] ^= 1
  fakefs.STORE[name] = bytes(data)
  again = shards.tokenize(task, TOKENIZER, folder, shard=900)
  with pytest.raises(Failure, match=r'00001\.tokens is damaged'):
    again.part(1)
  fakefs.clear()
  same(found, tokens.in_memory(task, TOKENIZER))  # The copies are our own.
