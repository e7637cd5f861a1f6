"""Parallel files: line by line, blank ones kept."""

import gzip

import pytest

from gptjax.sources.aligned import aligned
from gptjax.words import Mistake


def test_lines_go_in_pairs(tmp_path):
  a, b, c, d = (tmp_path / name for name in ('a.en', 'b.en.gz', 'a.de', 'b.de'))
  a.write_bytes(b'one\r\n\ntwo')
  b.write_bytes(gzip.compress(b'three\n'))
  c.write_text('\ufeffeins\n\nzwei\n')
  d.write_text('drei')
  found = aligned([str(a), str(b)], [str(c), str(d)])
  assert [tuple(found[i].values()) for i in range(len(found))] == [
    ('one', 'eins'),
    ('', ''),
    ('two', 'zwei'),
    ('three', 'drei'),
  ]
  assert [found.where(i) for i in (0, 2, 3)] == [f'{a}:1', f'{a}:3', f'{b}:1']


def test_files_that_do_not_pair_up(tmp_path):
  a, b = tmp_path / 'a', tmp_path / 'b'
  a.write_text('1\n2\n')
  b.write_text('1\n2\n3\n')
  with pytest.raises(Mistake, match=r'a has 2 lines and .*b 3: line n'):
    aligned([str(a)], [str(b)])
  with pytest.raises(Mistake, match='1 source files and 2 target files'):
    aligned([str(a)], [str(b), str(a)])
  a.write_text('')
  b.write_text('')
  with pytest.raises(Mistake, match='holds no document'):
    aligned([str(a)], [str(b)])
