"""The words of gptjax: every type that crosses a room.

Letters, in shape comments and in einsum strings everywhere:

  B rows of a batch      T tokens of a row (queries)    S key and value slots
  D width of the trunk   F width of the MLP             V vocabulary, padded
  H query heads          G key and value heads          K size of a head
  P prefix embeddings    N sides of a preference pair   R repeats of a layer group
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from gptjax.mistakes import Failure as Failure
from gptjax.mistakes import Leave as Leave
from gptjax.mistakes import Mistake as Mistake

Array = jax.Array | np.ndarray
Tree = Any  # Nested dicts (tuples, lists) of arrays.
Params = dict[str, Any]  # Nested dicts of arrays, Lora or Int8 at the leaves.
Frozen = dict[str, Tree]  # Named trees that are not trained: base, reference, teacher.

# A batch is a dict of arrays with fixed names:
#   tokens, targets [B, T] int32      weights [B, T] float32 of the targets
#   positions [B, T] int32            counted from 0 in each document
#   segments [B, T] int32             document within the row from 1; 0 is padding
#   kinds [B, T] int32                token types (sentence pairs)
#   prefix [B, P, D]                  embeddings put before the tokens
#   rows [B] int32                    row within the whole update; keys its draws
#   scores [B, T] float32             numbers to predict (regression), where weights say
#   advantages, behaviour [B, T]      rollouts: behaviour is log-probabilities, nats
# Preferences add an axis N after B.
Batch = dict[str, Array]


class Sum(NamedTuple):
  """A metric that adds up: over rows, micro-batches, devices and batches."""

  total: Array | float
  count: Array | float


class Max(NamedTuple):
  """A metric of which the largest counts."""

  value: Array | float


Metrics = dict[str, Sum | Max]


class Cache(NamedTuple):
  """Keys and values seen so far; slot s of row b holds the token at position s.

  keys and values mirror the layer groups: dicts with the groups' names of arrays
  [R, B, S, G, K], or of tuples of R arrays [B, S, G, K]. Rows have their own lengths.
  """

  keys: dict[str, Any]
  values: dict[str, Any]
  lengths: Array  # [B] int32, slots filled.


class Hidden(Protocol):
  """The trunk: tokens to hidden states."""

  def __call__(
    self,
    params: Params,
    batch: Batch,
    *,
    key: jax.Array | None = None,  # None: no dropout.
    cache: Cache | None = None,
    watch: Sequence[str] = (),  # 'attention', 'residual', ...: values to hand out.
    edit: Callable[[Array, str, Array], Array] | None = None,  # (layer, name, value).
    noise: float = 0.0,  # With a key, of the embeddings: alpha of Jain et al. 2023.
  ) -> tuple[Array, Cache | None, dict[str, Any]]:
    """Hidden [B, T, D] after the last norm, the cache filled on, aux."""
    ...


class Model(NamedTuple):
  """Pure functions over plain trees.

  `hidden` returns aux: Sums (such as the load balance of experts) by name, and under
  'watch' the watched values, stacked over layers [layers, ...].
  With a cache, `batch['tokens']` continue each row at its length; tokens of segment 0
  are padding at the right, neither counted nor attended to.
  """

  init: Callable[[jax.Array], Params]
  hidden: Hidden
  new_cache: Callable[[int, int, Any], Cache]  # (rows, length, dtype)
  heads: Mapping[str, Callable[[Params, Array], Array]]  # lm: [..., D] -> [..., V]
  axes: Tree  # Like params: a tuple of logical axis names for each leaf.
  flops: Callable[[Sequence[int]], float]  # Of one forward pass over shape [B, T].


class Objective(Protocol):
  """What is minimised: sums with their counts, never means."""

  def __call__(
    self,
    model: Model,
    params: Params,
    frozen: Frozen,
    batch: Batch,
    key: jax.Array | None,  # None: no dropout.
  ) -> tuple[Array, Array, Metrics]:
    """The loss summed, the weight to divide it by, metrics."""
    ...


class Optimizer(NamedTuple):
  """`update(grads, opt_state, params, step) -> (params, opt_state)`, new ones.

  `step` is the number of updates done before: the learning rate hangs on it alone, and
  not on opt_state, which a skipped update leaves as it was.

  `weights(opt_state, params, frozen)` is the whole tree that evaluators, rollouts,
  generation and export see: averages and adapters are hidden behind it.
  `rate(step)` is the learning rate of the update that ends step `step`, for the logs.
  `axes(param_axes)` gives the logical axis names of opt_state, laid out like params.
  """

  init: Callable[[Params], Tree]
  update: Callable[[Params, Tree, Params, Array], tuple[Params, Tree]]
  weights: Callable[[Tree, Params, Frozen], Params]
  rate: Callable[[Array], Array]
  axes: Callable[[Tree], Tree]


class TrainState(NamedTuple):
  """All that a train step changes; step n draws with fold_in(key, n)."""

  step: Array  # int32, updates done.
  params: Params
  opt_state: Tree
  key: Array  # Never advances.


class Source(Protocol):
  """Where batches come from.

  `weights()` is the whole tree that evaluators see: rollouts sample with it, data never
  ask for it, so that no step pays for an average that nobody looks at.
  """

  def next(self, weights: Callable[[], Params]) -> Batch: ...

  def get_state(self) -> Tree:
    """Of the batch last returned, whatever has been made ahead."""
    ...

  def set_state(self, state: Tree) -> None: ...


class Scores(NamedTuple):
  """What an evaluation found, as functions of how often each unit of its data counts.

  A unit is what was drawn by itself, such as an example. With each of them once the
  functions give the scores, with others what other data would have given.
  """

  units: int
  numbers: dict[str, Callable[[np.ndarray], float]]  # Of counts [units].
  notes: dict[str, Any] = {}  # What belongs to the numbers: a signature, counts.
  examples: Sequence[dict[str, Any]] = ()  # What was asked, said and right.


class Evaluator(NamedTuple):
  """`run(weights)` gives numbers by name; due at every `every` steps and at the end.

  `scores(weights)` gives the same numbers with what they rest on.
  """

  run: Callable[[Params], dict[str, float]]
  every: int
  names: tuple[str, ...] = ()  # Of the numbers, where they are known before.
  scores: Callable[[Params], Scores] | None = None


class Text(NamedTuple):
  """A document."""

  text: str
  control: tuple[tuple[str, str], ...] = ()  # What is asked for: ('style', 'formal').


class Turn(NamedTuple):
  """What one side says: role is system, user, assistant or tool."""

  role: str
  text: str
  weight: float = 1.0  # Of its tokens in the loss.


class Conversation(NamedTuple):
  """Turns in order."""

  turns: tuple[Turn, ...]
  control: tuple[tuple[str, str], ...] = ()  # As of Text.


class Label(NamedTuple):
  """A text and what a head is to say of it."""

  text: str
  label: int | float  # int: index of its class in the task's `labels`; float: a number.


class Pair(NamedTuple):
  """Two continuations of one prompt, the first preferred."""

  prompt: Conversation
  chosen: str
  rejected: str


class Encoded(NamedTuple):
  """An example as ids: the first is only read, every other one is a target too."""

  ids: np.ndarray  # [n] int32
  weights: np.ndarray | None = None  # [n] float32 of each as a target; None: 1 each.
  scores: np.ndarray | None = None  # [n] float32, numbers to predict in their place.


Example = Text | Conversation | Label | Pair


class Task(Protocol):
  """Named, indexable examples; the same task serves training, rewards and evaluation.

  Optionally `grade(example, answer: str) -> float` in [0, 1]; `references(i)`, the
  right answers to a conversation, its last turn among them; `labels`, names of classes.
  """

  @property
  def name(self) -> str: ...

  @property
  def kind(self) -> str: ...  # text, conversation, label, pair, choice, solve, ...

  @property
  def digest(self) -> str: ...  # sha256 (hex) of what decides the examples.

  def __len__(self) -> int: ...

  def example(self, index: int) -> Example: ...


class Tokenizer(Protocol):
  """Text to ids and back, losslessly; user text never becomes a control token."""

  @property
  def name(self) -> str: ...

  @property
  def size(self) -> int: ...  # Ids in use; the model pads it to a multiple of 128.

  @property
  def start(self) -> int: ...  # Id before a document.

  @property
  def end(self) -> int: ...  # Id after a document.

  @property
  def controls(self) -> Mapping[str, int]: ...  # By name; start and end among them.

  @property
  def digest(self) -> str: ...  # sha256 (hex) of what decides the ids.

  @property
  def files(self) -> Mapping[str, bytes]: ...  # By name, what it is read from.

  def encode(self, text: str) -> np.ndarray: ...  # int32, no control tokens

  def decode(self, ids: Sequence[int]) -> str: ...  # Control tokens vanish.

  def piece(self, index: int) -> bytes: ...  # The bytes of an id; b'' for controls.

  def save(self, folder: Any) -> None: ...


class Template(Protocol):
  """How a conversation is written in ids, control tokens by code alone."""

  @property
  def digest(self) -> str: ...  # sha256 (hex) of what decides the ids.

  @property
  def stops(self) -> tuple[int, ...]: ...  # Ids that end what the assistant says.

  @property
  def jinja(self) -> str: ...  # The same for other tools: a chat template of Jinja.

  def encode(
    self, conversation: Conversation, roles: Mapping[str, float]
  ) -> list[Encoded]:
    """Of each turn its own ids, in order; joined they are the whole conversation.

    Weights are the turn's times that of its role; what the template adds around a turn
    weighs 0, but the id that ends an answer weighs as much as the answer.
    """
    ...

  def prompt(self, conversation: Conversation) -> np.ndarray:
    """Ids [n] int32 up to where the assistant begins to speak."""
    ...

  def save(self, folder: Any) -> None: ...
