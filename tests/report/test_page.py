import json
import math
import pathlib
import re
import xml.etree.ElementTree

import pytest

from gptjax.mistakes import Mistake
from gptjax.report import curves, page

NAN = math.nan


def make_run(folder, losses, config=None, samples=''):
  folder.mkdir()
  config = {'steps': len(losses), 'optim': {'lr': 0.1}, **(config or {})}
  (folder / 'config.json').write_text(json.dumps({'format': 1, 'config': config}))
  rows = [{'step': i + 1, 'train/loss': x} for i, x in enumerate(losses)]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
  (folder / 'samples.md').write_text(samples)
  return str(folder)


def test_the_page_stands_alone_and_shows_the_numbers(tmp_path):
  run = make_run(tmp_path / 'a', [3.0, 2.0, 1.25])
  text = pathlib.Path(page.write([run])).read_text()
  assert '1.25' in text
  assert 'train/loss' in text
  assert '<script' not in text
  assert not re.findall(r'(?:src|href)=', text), 'nothing is loaded from elsewhere'


def test_hostile_samples_and_names_are_escaped(tmp_path):
  hostile = '<script>alert(1)</script><img src=x onerror=alert(1)>'
  config = {'note': hostile}
  run = make_run(tmp_path / '<b>a', [3.0, 2.0], config, hostile)
  text = pathlib.Path(page.write([run])).read_text()
  assert '<script' not in text
  assert '<img' not in text
  assert '<b>a' not in text
  assert '&lt;script&gt;' in text


def test_runs_are_compared_by_what_differs(tmp_path):
  a = make_run(tmp_path / 'a', [3.0, 2.0], {'optim': {'lr': 0.1, 'clip': 1}})
  b = make_run(tmp_path / 'b', [3.0, 1.0], {'optim': {'lr': 0.2, 'clip': 1}})
  text = pathlib.Path(page.write([a, b], str(tmp_path / 'out.html'))).read_text()
  differs = text[text.index('What differs') :].partition('</table>')[0]
  assert 'optim.lr' in differs
  assert 'optim.clip' not in differs


def test_a_cut_last_line_is_left_out_and_a_broken_one_is_named(tmp_path):
  run = make_run(tmp_path / 'a', [3.0, 2.0])
  with open(tmp_path / 'a' / 'metrics.jsonl', 'a') as f:
    f.write('{"step": 3, "tra')
  assert [s for s, _ in page.read(run).lines['train/loss']] == [1, 2]
  (tmp_path / 'a' / 'metrics.jsonl').write_text('{"step": 1, \n{}\n')
  with pytest.raises(Mistake, match=r'metrics\.jsonl'):
    page.read(run)
  with pytest.raises(Mistake, match='no run folder'):
    page.read(str(tmp_path))


@pytest.mark.parametrize('low', [-3.7, 0.0, 1e-9, 123456.0])
@pytest.mark.parametrize('span', [1e-6, 0.3, 1.0, 7.0, 1e7])
def test_ticks_are_round_and_cover(low, span):
  found = curves.ticks(low, low + span)
  size = found[1] - found[0]
  assert found[0] <= low + 1e-8 * size
  assert found[-1] >= low + span - 1e-8 * size - 1e-12 * abs(low)
  assert 3 <= len(found) <= 9
  mantissa = size / 10 ** math.floor(math.log10(size) + 1e-9)
  assert any(abs(mantissa - m) < 1e-3 for m in (1, 2, 2.5, 5, 10))


def test_lines_break_where_a_value_is_not_finite():
  svg = curves.chart({'a': [(1, 1.0), (2, 2.0), (3, NAN), (4, 1.0), (5, 2.0)]})
  root = xml.etree.ElementTree.fromstring(svg)
  assert len([e for e in root if e.tag.endswith('polyline')]) == 2
  assert curves.chart({'a': [(1, NAN)]}) == ''
  assert 'polyline' in curves.chart({'flat': [(1, 0.0), (2, 0.0)]})


def test_thinning_keeps_the_extremes():
  line = [(i, 0.0) for i in range(10_000)]
  line[777], line[8888] = (777, 5.0), (8888, -5.0)
  found = curves.thin(line, 100)
  assert len(found) <= 220
  assert (777, 5.0) in found
  assert (8888, -5.0) in found
