"""Checkpoints: written behind the training, whole or not there, checked when read.

    checkpoints/200/state/          the arrays, by orbax, sharded over processes
    checkpoints/200/extra.json      state of the data, offsets of the logs
    checkpoints/200/MANIFEST.json   written last: sums of all the files above
    checkpoints/scores.json         the metric of `keep_best` at each step
    checkpoints/damaged/            steps not as they were written, or never finished

The state is saved as nested dicts by leaf path, so that a part of it can be read
without the code that made the rest. For a remote store (no rename, no append) a single
process writes to a temporary local folder, sums it up and uploads it file by file, the
manifest last, and restores by download. Several processes write through orbax at once,
which wants a store that it knows (gs://) or a folder that all of them share.
"""

import contextlib
import json
import logging
import math
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import SingleDeviceSharding

from gptjax import files, manifest
from gptjax.steps import Steps, make_best, staged, together, upload
from gptjax.tree import nested, paths
from gptjax.words import Failure, Mistake, Tree

_STATE, _EXTRA = 'state', 'extra.json'


class Restored(NamedTuple):
  """What a step held."""

  step: int
  state: Tree
  data: Tree
  offsets: dict[str, int]


def open_checkpoints(
  folder: epath.PathLike,
  *,
  keep: int | None = 2,
  keep_best: Mapping[str, Any] | None = None,
  read_only: bool = False,
  say: Callable[[str], None] = files.say,
) -> 'Checkpoints':
  """The checkpoints in a folder ('runs/small/checkpoints').

  `keep` of the latest are kept (None: all) and, with `keep_best=dict(metric=
  'val/bits_per_byte', mode='min', n=1)`, the n best of those scored. The one writer
  moves aside what was never finished; readers change nothing.

  Raises:
    Mistake: a wrong `keep` or `keep_best`.
    Failure: the folder cannot be made.
  """
  folder = files.absolute(folder)  # Orbax takes no other.
  if keep is not None and keep < 1:
    raise Mistake(f'c.keep={keep}: at least 1 checkpoint is kept.')
  best = make_best(keep_best) if keep_best else None
  if not read_only and jax.process_index() == 0:
    with files.reporting(f'cannot make the folder {folder}'):
      folder.mkdir(parents=True, exist_ok=True)
  steps = Steps(folder, best, read_only, say)
  if not read_only:
    steps.set_aside_unfinished()
    together('gptjax unfinished steps set aside')
  return Checkpoints(steps, keep)


class Checkpoints:
  """Saves and restores the steps of a folder; see open_checkpoints."""

  def __init__(self, steps: Steps, keep: int | None):
    self._steps, self._keep = steps, keep
    self._main = jax.process_index() == 0
    self._orbax: Any = None  # Made at the first use: the import takes half a second.
    self._thread: threading.Thread | None = None
    self._error: Failure | None = None
    self._restored: int | None = None

  def steps(self) -> list[int]:
    """The steps that count, in order: those with a manifest."""
    return self._steps.done()

  def latest(self) -> int | None:
    """The newest step."""
    return max(self.steps(), default=None)

  def best(self) -> int | None:
    """The step with the best score, the first of equals; None if none has one."""
    return next(iter(self._steps.ranked(self.steps())), None)

  def score(self, step: int, metrics: Mapping[str, float]) -> None:
    """Notes what an evaluation says of a step, which comes after its save.

    Of all metrics only that of `keep_best` matters; without it, nothing is done.
    """
    self._steps.score(int(step), metrics)

  def leaves(self, step: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every leaf of a step, by path."""
    found = manifest.read(self._steps.place(step))['leaves']
    return {path: (tuple(leaf['shape']), leaf['dtype']) for path, leaf in found.items()}

  # Writing.

  def save(
    self,
    step: int,
    state: Tree,
    data_state: Tree,
    offsets: Mapping[str, int],
    metrics: Mapping[str, float] | None = None,
  ) -> bool:
    """Copies the arrays and returns; the writing goes on behind.

    Waits for the save before, and raises its error. Does nothing (False) at the step
    just restored, which is there already. `data_state` is a tree of dicts, lists,
    numbers, strings and arrays that this process holds whole.

    Raises:
      Failure: this step or the one before could not be written, or is there already.
    """
    self.wait()
    step, place = int(step), self._steps.place(int(step))
    if step == self._restored:
      return False
    if self._steps.read_only:
      raise Failure(f'{place.parent} was opened for reading.')
    if step in self.steps():
      raise Failure(f'refused to save step {step}: {place} is there already.')
    work = place
    try:
      if place.exists():
        self._steps.set_aside(step, 'was never finished')
      arrays, leaves = _to_arrays(state)
      offsets = {name: int(n) for name, n in offsets.items()}
      extra = {'step': step, 'data': manifest.encode(data_state), 'offsets': offsets}
      if staged(place):
        work = epath.Path(tempfile.mkdtemp(prefix='gptjax-checkpoint-'))
      if self._main:
        work.mkdir(parents=True, exist_ok=True)
        files.write(work / _EXTRA, json.dumps(extra))
      _save_arrays(self._checkpointer(), work / _STATE, arrays)
    except Exception as error:
      self._give_up(work)
      raise self._failed(step, error) from error
    if metrics:
      self.score(step, metrics)
    self._thread = threading.Thread(
      target=self._finish, args=(step, work, leaves), name='checkpoint'
    )
    self._thread.start()
    return True

  def wait(self) -> None:
    """Until the last save is committed.

    Raises:
      Failure: it could not be written; older ones are intact.
    """
    if self._thread:
      self._thread.join()
      self._thread = None
    if self._error:
      error, self._error = self._error, None
      raise error

  def close(self) -> None:
    """Waits, drops what retention does not keep, and ends orbax's threads.

    Raises:
      Failure: the last save could not be written.
    """
    try:
      self.wait()
      if self._main and not self._steps.read_only:
        self._steps.prune(self._keep)
    finally:
      if self._orbax:
        self._orbax.close()
        self._orbax = None
      together('gptjax checkpoints closed')

  def _finish(self, step: int, work: epath.Path, leaves: dict[str, Any]) -> None:
    """Behind the training: waits for the arrays, sums all up, commits the step."""
    try:
      self._checkpointer().wait_until_finished()  # Of all processes.
      if self._main:
        manifest.write(work, step, leaves)
        if work != self._steps.place(step):
          upload(work, self._steps.place(step))
        self._steps.prune(self._keep)
    except Exception as error:
      self._error = self._failed(step, error)
      self._give_up(work)

  def _checkpointer(self) -> Any:
    if self._orbax is None:
      self._orbax = _make_checkpointer()
    return self._orbax

  def _failed(self, step: int, error: Exception) -> Failure:
    others = ', '.join(map(str, self.steps())) or 'none'
    return Failure(
      f'checkpoint {step} could not be written to {self._steps.folder}: '
      f'{files.cause(error)}. Older checkpoints, all intact: {others}.'
    )

  def _give_up(self, work: epath.Path) -> None:
    """Gives back the disk that a failed save took; what stays is set aside later."""
    if self._main:
      shutil.rmtree(work, ignore_errors=True)

  # Reading.

  def restore(self, abstract: Tree, step: int | str | None = None) -> Restored | None:
    """The newest step that is whole, laid out as `abstract` says.

    `abstract` is the whole state as jax.ShapeDtypeStruct with shardings (any mesh), or
    an example of it. `step` may also be a number or 'best'. None: there is no step.
    Damaged steps are set aside with a line each, and the one before is used.

    Raises:
      Mistake: the leaves, their shapes or dtypes differ, with their names.
      Failure: the step asked for by number is damaged.
    """

    def read(place: epath.Path, found: dict[str, Any]) -> Restored:
      manifest.compare(
        self._steps.place(found['step']), found['leaves'], abstract, whole=True
      )
      state = _from_arrays(self._checkpointer(), place, found['leaves'], abstract)
      extra = json.loads((place / _EXTRA).read_text())
      data, offsets = manifest.decode(extra['data']), extra['offsets']
      return Restored(found['step'], state, data, offsets)

    restored = self._open(step, read)
    if restored and not self._steps.read_only:
      self._restored = restored.step
    return restored

  def read(
    self, abstract: Tree, step: int | str | None = None
  ) -> tuple[int, Tree] | None:
    """A part of a step: `dict(params=..., opt_state=...)` of abstract leaves.

    Like `restore`, but the step may hold more than is asked for.
    """

    def read(place: epath.Path, found: dict[str, Any]) -> tuple[int, Tree]:
      manifest.compare(
        self._steps.place(found['step']), found['leaves'], abstract, whole=False
      )
      state = _from_arrays(self._checkpointer(), place, found['leaves'], abstract)
      return found['step'], state

    return self._open(step, read)

  def _open(
    self, step: int | str | None, read: Callable[[epath.Path, dict[str, Any]], Any]
  ) -> Any:
    """`read(folder, manifest)` of the wanted step, or of the next one that is whole."""
    self.wait()
    damaged: set[int] = set()
    while (n := self._steps.candidate(step, damaged)) is not None:
      with contextlib.ExitStack() as stack:
        try:
          place, found = self._steps.checked(n, stack)
        except manifest.Damaged as error:
          damaged.add(n)
          self._steps.set_aside(n, f'is damaged ({error})')
          together(f'gptjax step {n} set aside')
          if isinstance(step, int):
            place = self._steps.place(n)
            raise Failure(f'checkpoint {place} is damaged: {error}.') from None
          continue
        return read(place, found)
    return None


def restore_weights(
  folder: epath.PathLike,
  abstract: Tree,
  step: int | str | None = 'best',
  say: Callable[[str], None] = files.say,
) -> tuple[int, Tree]:
  """(step, tree): a part of a step of another run, changing nothing there.

  `abstract` is what Optimizer.weights wants of that run, `dict(params=..., opt_state=
  ...)`, as jax.ShapeDtypeStruct with shardings. 'best' is the latest where no step has
  a score.

  Raises:
    Mistake: no such step, or leaves that differ.
    Failure: the step asked for by number is damaged.
  """
  checkpoints = open_checkpoints(folder, read_only=True, say=say)
  try:
    found = checkpoints.read(abstract, step)
  finally:
    checkpoints.close()
  if found is None:
    raise Mistake(f'{folder} holds no checkpoint that is whole.')
  return found


# Trees and arrays.


def _to_arrays(state: Tree) -> tuple[dict[str, Any], dict[str, Any]]:
  """Arrays by leaf path as orbax can save them, and what the manifest says of them."""
  arrays, leaves = {}, {}
  found = paths(state)
  if len(found) != len(jax.tree.leaves(state)):
    raise ValueError('two leaves of the state have the same path')
  for path, leaf in found.items():
    leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    leaves[path] = {'shape': list(leaf.shape), 'dtype': str(leaf.dtype)}
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaves[path]['key'] = str(jax.random.key_impl(leaf))
      leaf = jax.random.key_data(leaf)
    if leaf.size:  # Orbax refuses empty arrays; their shape says all.
      arrays[path] = leaf
  return arrays, leaves


def _from_arrays(
  checkpointer: Any, place: epath.Path, leaves: dict[str, Any], abstract: Tree
) -> Tree:
  """The arrays that `abstract` names, laid out as it says."""
  wanted = {path: manifest.described(leaf) for path, leaf in paths(abstract).items()}
  full = {path: leaf for path, leaf in wanted.items() if math.prod(leaf.shape)}
  arrays = _restore_arrays(checkpointer, place / _STATE, full)
  found = []
  for path, leaf in wanted.items():
    array = arrays[path] if path in full else jnp.zeros(leaf.shape, leaf.dtype)
    if 'key' in leaves[path]:
      array = jax.random.wrap_key_data(array, impl=leaves[path]['key'])
    found.append(array)
  return jax.tree.unflatten(jax.tree.structure(abstract), found)


# Orbax.


def _make_checkpointer() -> Any:
  import orbax.checkpoint as ocp

  logging.getLogger('absl').addFilter(_not_orbax_traceback)
  options = ocp.options.AsyncOptions(timeout_secs=3600)
  # Weights hardly compress (8 %), and trying takes the CPU from the training.
  handler = ocp.PyTreeCheckpointHandler(use_compression=False)
  return ocp.AsyncCheckpointer(handler, async_options=options)


def _not_orbax_traceback(record: logging.LogRecord) -> bool:
  """Orbax logs the traceback of an error that it raises too."""
  return not (record.exc_info and 'orbax' in record.pathname)


def _save_arrays(
  checkpointer: Any, place: epath.Path, arrays: Mapping[str, Any]
) -> None:
  import orbax.checkpoint as ocp

  checkpointer.save(place, args=ocp.args.PyTreeSave(nested(arrays)))


def _restore_arrays(
  checkpointer: Any, place: epath.Path, wanted: Mapping[str, Any]
) -> dict[str, Any]:
  import orbax.checkpoint as ocp

  def one(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
      return ocp.RestoreArgs(restore_type=np.ndarray)
    sharding = getattr(leaf, 'sharding', None)
    sharding = sharding or SingleDeviceSharding(jax.local_devices()[0])
    return ocp.ArrayRestoreArgs(sharding=sharding)

  args = ocp.args.PyTreeRestore(
    item=nested(dict.fromkeys(wanted, 0)),
    restore_args=nested({path: one(leaf) for path, leaf in wanted.items()}),
    partial_restore=True,
  )
  return paths(checkpointer.restore(place, args=args))
