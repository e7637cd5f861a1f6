"""Groups of layers: which layers are stacked together, and under which names.

Layers repeat a pattern of kinds: gpt-neo (global, local) x 6. The layers at one place
of the pattern are stacked; their group's name is the Python range of their numbers,
'0:12:2' and '1:12:2'. What is left of a pattern at the end is a group of one repeat.
"""

from typing import NamedTuple

from gptjax.models.settings import Settings


class Group(NamedTuple):
  """A run of layers: a pattern of kinds, repeated."""

  kinds: tuple[str, ...]
  start: int  # Number of its first layer.
  repeats: int

  @property
  def names(self) -> list[str]:
    """One for each place of the pattern."""
    step = len(self.kinds)
    stop = self.start + step * self.repeats
    return [f'{self.start + i}:{stop}:{step}' for i in range(step)]


def groups(c: Settings) -> list[Group]:
  """The groups of the settings' layers, in order."""
  repeats, rest = divmod(c.layers, len(c.pattern))
  found = [Group(c.pattern, 0, repeats)] if repeats else []
  if rest:
    found.append(Group(c.pattern[:rest], c.layers - rest, 1))
  return found
