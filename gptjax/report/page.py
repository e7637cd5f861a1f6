"""A run folder, or several side by side, as one self-contained page: report.html."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
from etils import epath

from gptjax import files, folder, metrics
from gptjax.lookup import flatten
from gptjax.report.curves import chart

# Charts in this order first; all others follow by name.
FIRST = (
  'train/loss',
  'val/bits_per_byte',
  'val/nats_per_token',
  'timings/tokens_per_s',
)
TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>
:root { color-scheme: light dark; --ink: #1d2129; --soft: #667; --edge: #dde;
  --back: #fff; --panel: #f7f8fa; --c0: #2563c9; --c1: #c2410c; --c2: #15803d;
  --c3: #9333ea; --c4: #b45309; --c5: #0e7490; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --soft: #9aa;
  --edge: #343a44; --back: #14171c; --panel: #1c2027; --c0: #7cacf8; --c1: #fb923c;
  --c2: #4ade80; --c3: #c084fc; --c4: #fbbf24; --c5: #22d3ee; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto;
  background: var(--back); max-width: 1120px; padding: 24px 16px 64px; }
h1 { font-size: 24px; } h2 { font-size: 18px; margin-top: 36px; }
.charts { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); }
figure { margin: 0; padding: 10px; background: var(--panel); border-radius: 8px; }
figcaption { font-weight: 600; font-size: 13px; }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: var(--soft); }
svg .left { text-anchor: end; dominant-baseline: middle; }
svg .below { text-anchor: middle; } svg .grid { stroke: var(--edge); }
svg polyline { fill: none; stroke-width: 1.6; }
{% for n in range(6) %}
svg .line{{ n }} { stroke: var(--c{{ n }}); } .key{{ n }} { color: var(--c{{ n }}); }
{% endfor %}
table { border-collapse: collapse; } .wide { overflow-x: auto; }
td, th { padding: 3px 16px 3px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--edge); }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: var(--panel); padding: 12px; border-radius: 8px; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; }
</style></head><body>
<h1>{{ title }}</h1>
{% if runs|length > 1 %}
<p>{% for run in runs %}<b class="key{{ loop.index0 % 6 }}">{{ run.name }}</b>
{% endfor %}</p>{% endif %}
<h2>Results</h2>
<div class="wide"><table><tr><th></th>{% for run in runs %}<th>{{ run.name }}</th>
{% endfor %}</tr>{% for name in results %}<tr><th>{{ name }}</th>
{% for run in runs %}<td class="number">{{ shown(run.result.get(name)) }}</td>
{% endfor %}</tr>{% endfor %}</table></div>
<h2>Curves</h2><div class="charts">{% for name, svg in charts %}
<figure><figcaption>{{ name }}</figcaption>{{ svg|safe }}</figure>{% endfor %}</div>
{% if differences %}<h2>What differs</h2><div class="wide"><table><tr><th>config</th>
{% for run in runs %}<th>{{ run.name }}</th>{% endfor %}</tr>
{% for key, values in differences %}<tr><th>{{ key }}</th>
{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}
</table></div>{% endif %}
{% for run in runs %}
<h2>{{ run.name }}</h2>
<details{% if runs|length == 1 %} open{% endif %}><summary>Samples</summary>
<pre>{{ run.samples or 'none' }}</pre></details>
<details><summary>Environment</summary><pre>{{ run.environment }}</pre></details>
<details><summary>Config</summary><pre>{{ run.config_text }}</pre></details>
{% endfor %}</body></html>
"""


class Record(NamedTuple):
  """What a run folder says."""

  name: str
  config: dict[str, Any]
  lines: dict[str, list[tuple[float, float]]]  # (step, value) by name.
  result: dict[str, float]
  samples: str
  environment: str

  @property
  def config_text(self) -> str:
    """The config, indented."""
    return json.dumps(self.config, indent=2)


def read(path: str) -> Record:
  """Reads a run folder, finished or not.

  Raises:
    Mistake: it is none, or a file of it is damaged.
  """
  place = epath.Path(path)
  config = folder.read_config(place)
  lines: dict[str, list[tuple[float, float]]] = {}
  for file, prefix in ((metrics.METRICS, ''), (metrics.TIMINGS, 'timings/')):
    for found in metrics.read_lines(place / file):
      step = found.pop('step')
      found.pop('time', None)
      for name, value in found.items():
        lines.setdefault(prefix + name, []).append((step, value))

  def text(name: str) -> str:
    return (place / name).read_text() if (place / name).exists() else ''

  last = {name: line[-1][1] for name, line in lines.items()}
  result = {k: v for k, v in last.items() if not k.startswith('timings/')}
  speeds = [value for _, value in lines.get('timings/tokens_per_s', [])]
  if speeds:
    result['tokens per second (median)'] = sorted(speeds)[len(speeds) // 2]
  samples, environment = text(metrics.SAMPLES), text('environment.txt')
  name = place.name or str(place)
  return Record(name, config, lines, result, samples, environment)


def render(runs: Sequence[Record]) -> str:
  """The page of some runs: everything that came from outside is escaped."""
  names = sorted({name for run in runs for name in run.lines})
  ordered = [n for n in FIRST if n in names] + [n for n in names if n not in FIRST]
  charts = []
  for name in ordered:
    lines = {f'{i} {run.name}': run.lines.get(name, []) for i, run in enumerate(runs)}
    if any(len(line) > 1 for line in lines.values()):
      charts.append((name, chart(lines)))
  flat = [dict(flatten(run.config)) for run in runs]
  keys = dict.fromkeys(key for config in flat for key in config)
  differences = [
    (key, [json.dumps(config.get(key)) for config in flat])
    for key in keys
    if any(config.get(key) != flat[0].get(key) for config in flat)
  ]
  environment = jinja2.Environment(autoescape=True, trim_blocks=True)
  return environment.from_string(TEMPLATE).render(
    title=' and '.join(run.name for run in runs),
    runs=runs,
    results=list(dict.fromkeys(name for run in runs for name in run.result)),
    charts=charts,
    differences=differences,
    shown=lambda value: '' if value is None else f'{value:.6g}',
  )


def write(paths: Sequence[str], out: str = '') -> str:
  """Writes the page of some run folders; returns where: in the first, if not said.

  Raises:
    Mistake: one is no run folder, or a file of it is damaged.
    Failure: the page cannot be written.
  """
  runs = [read(path) for path in paths]
  place = epath.Path(out or epath.Path(paths[0]) / 'report.html')
  with files.reporting(f'cannot write {place}'):
    files.write(place, render(runs))
  return str(place)
