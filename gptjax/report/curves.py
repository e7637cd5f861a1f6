"""Line charts as SVG text: no script, no font, no picture from elsewhere."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence

WIDTH, HEIGHT = 520, 240  # Pixels of a chart, its margins included.
LEFT, RIGHT, TOP, BOTTOM = 56, 24, 12, 30
Points = Sequence[tuple[float, float]]


def chart(lines: Mapping[str, Points], points: int = 400) -> str:
  """One chart of lines by name, as <svg>; CSS classes line0, line1, ... colour them.

  Values that are not finite leave a gap. Long lines are thinned to the extremes of
  about `points` stretches. Without any finite value: ''.
  """
  lines = {name: thin(line, points) for name, line in lines.items()}
  finite = [p for line in lines.values() for p in line if math.isfinite(p[1])]
  if not finite:
    return ''
  xs, ys = ticks(*_span(p[0] for p in finite)), ticks(*_span(p[1] for p in finite))

  def x(value: float) -> float:
    return LEFT + (value - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)

  def y(value: float) -> float:
    return TOP + (ys[-1] - value) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM)

  parts = []
  for tick in ys:
    at = f'{y(tick):.1f}'
    parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}"')
    parts.append(f' y1="{at}" y2="{at}"/>')
    parts.append(f'<text x="{LEFT - 6}" y="{at}" class="left">{label(tick)}</text>')
  for tick in xs:
    parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - 10}" class="below">')
    parts.append(f'{label(tick)}</text>')
  for number, (name, line) in enumerate(lines.items()):
    for run in _runs(line):
      path = ' '.join(f'{x(a):.1f},{y(b):.1f}' for a, b in run)
      parts.append(f'<polyline class="line{number % 6}" points="{path}">')
      parts.append(f'<title>{html.escape(name)}</title></polyline>')
  box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
  return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{"".join(parts)}</svg>'


def _span(values: Iterable[float]) -> tuple[float, float]:
  values = list(values)
  low, high = min(values), max(values)
  pad = abs(low) * 0.05 or 1.0
  return (low, high) if high > low else (low - pad, high + pad)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """Round numbers from at most `low` to at least `high`, about `count` of them."""
  raw = (high - low) / count
  size = 10.0 ** math.floor(math.log10(raw))
  step = next(s * size for s in (1, 2, 2.5, 5, 10) if s * size >= raw * (1 - 1e-9))
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [n * step for n in range(first, last + 1)]


def label(value: float) -> str:
  """A tick's text: 2,500 and 0.0003 and 1.2e+09."""
  if value == 0:
    return '0'
  if 1e4 <= abs(value) < 1e7:
    return f'{value:,.0f}'
  return f'{value:.4g}'


def thin(line: Points, points: int) -> list[tuple[float, float]]:
  """At most about two `points` of a line: the least and largest of each stretch."""
  size = len(line) // points
  if size < 2:
    return list(line)
  found = []
  for i in range(0, len(line), size):
    part = line[i : i + size]
    finite = [p for p in part if math.isfinite(p[1])] or [part[0]]
    ends = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])}
    found += sorted(ends)
  return found


def _runs(line: Points) -> list[list[tuple[float, float]]]:
  """The stretches between values that are not finite."""
  runs: list[list[tuple[float, float]]] = [[]]
  for point in line:
    if math.isfinite(point[1]):
      runs[-1].append(point)
    elif runs[-1]:
      runs.append([])
  return [run for run in runs if run]
