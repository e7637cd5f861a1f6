"""What fits into memory: bytes that there are, and bytes that something wants.

Refused is only what cannot fit at all; a machine that is too small by a little, or has
other work to do, says so itself (`explain`).
"""

import math
import os
import re
from typing import Any

import jax

from gptjax.words import Mistake, Tree

_LIMIT = '/sys/fs/cgroup/memory.max'
_UNITS = ('bytes', 'kB', 'MB', 'GB', 'TB', 'PB')


def capacity() -> int | None:
  """Bytes of one device; of the machine where devices are its CPU. None: unknown."""
  device = jax.local_devices()[0]
  if device.platform != 'cpu':
    return (device.memory_stats() or {}).get('bytes_limit')
  return machine_bytes()


def machine_bytes() -> int | None:
  """Memory and swap, or what the container may use of them."""
  try:
    found = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    with open('/proc/meminfo') as f:
      swap = re.search(r'SwapTotal: *(\d+) kB', f.read())
    found += 1024 * int(swap.group(1)) if swap else 0
  except (OSError, ValueError):
    return None
  try:
    with open(_LIMIT) as f:
      return min(found, int(f.read()))
  except (OSError, ValueError):  # None, or 'max'.
    return found


def tree_bytes(abstract: Tree) -> int:
  """Bytes that arrays of these shapes and shardings take where `capacity` counts."""

  def one(x: Any) -> int:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return 0
    where = getattr(x, 'sharding', None)
    shape = where.shard_shape(x.shape) if where else x.shape
    return math.prod(shape) * x.dtype.itemsize

  shared = jax.local_devices()[0].platform == 'cpu'
  count = len(jax.local_devices()) if shared else 1
  return count * sum(map(one, jax.tree.leaves(abstract)))


def program_bytes(compiled: jax.stages.Compiled) -> int:
  """Bytes that a compiled program takes where `capacity` counts, its arguments too."""
  found: Any = compiled.memory_analysis()
  if found is None:
    return 0
  held = found.argument_size_in_bytes + found.output_size_in_bytes
  wanted = held - found.alias_size_in_bytes + found.temp_size_in_bytes
  shared = jax.local_devices()[0].platform == 'cpu'
  return wanted * (len(jax.local_devices()) if shared else 1)


def check_fits(wanted: int, what: str, cure: str) -> None:
  """Raises Mistake where the bytes wanted are more than there are."""
  there = capacity()
  if there is not None and wanted > there:
    where = jax.local_devices()[0]
    kind = 'this machine' if where.platform == 'cpu' else f'one {where.device_kind}'
    raise Mistake(
      f'{what} cannot fit: {shown(wanted)} wanted, {kind} has {shown(there)}. {cure}.'
    )


def shown(count: float) -> str:
  """Bytes for people: '16.0 GB'."""
  unit = 0
  while count >= 1000 and unit < len(_UNITS) - 1:
    count, unit = count / 1000, unit + 1
  return f'{count:.1f} {_UNITS[unit]}' if unit else f'{count:.0f} bytes'


def explain(error: BaseException) -> str | None:
  """What an error says of memory that was wanted in vain; None: it is another error."""
  text = str(error)
  known = any(word in text for word in ('RESOURCE_EXHAUSTED', 'bad_alloc'))
  if not known and not isinstance(error, MemoryError):
    return None
  size = re.search(r'allocat\w+ ([\d.]+ *\w+)', text)
  return f'out of memory; {size.group(1)} were wanted' if size else 'out of memory'
