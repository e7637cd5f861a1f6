"""What conftest and pyproject promise of every test."""

import jax
import jax.numpy as jnp
import pytest

WARN = compile('import warnings; warnings.warn("old", kind)', 'somewhere.py', 'exec')
KINDS = [DeprecationWarning, FutureWarning, RuntimeWarning, UserWarning]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('module', ['gptjax.models.linear', 'experiments.small'])
def test_a_warning_from_our_own_code_is_an_error(module, kind):
  with pytest.raises(kind):
    exec(WARN, {'__name__': module, 'kind': kind})


def test_a_warning_from_elsewhere_is_none():
  with pytest.warns(UserWarning, match='old'):
    exec(WARN, {'__name__': 'somebody.else', 'kind': UserWarning})


def test_there_are_eight_devices_and_ranks_do_not_promote():
  assert len(jax.devices()) == 8
  with pytest.raises(ValueError, match='rank_promotion'):
    jnp.ones((2, 3)) + jnp.ones(3)
