"""Eight virtual CPU devices, one compilation cache, and the real data where it lies."""

import os
import pathlib
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR', os.path.join(tempfile.gettempdir(), 'gptjax-test-cache')
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')

SHARED = pathlib.Path(
  os.environ.get('GPTJAX_DATA')
  or pathlib.Path(__file__).resolve().parents[1].parent / 'shared' / 'data'
)


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
  """The folder of real data sets; a test that wants it skips where there is none."""
  if not SHARED.is_dir():
    pytest.skip(f'no data sets: {SHARED} is not a folder (set GPTJAX_DATA)')
  return SHARED
