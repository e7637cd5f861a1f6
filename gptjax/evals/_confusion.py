"""Precision, recall and F1 from how often each class was taken for which.

Source: van Rijsbergen 1979, "Information retrieval", chapter 7; the macro means are
over the classes that occur or were guessed, as scikit-learn's are. Letters: C classes,
N examples.
"""

from collections.abc import Callable, Sequence

import numpy as np

from gptjax.words import Scores

NAMES = ('accuracy', 'precision', 'recall', 'f1')


def confusion(
  right: np.ndarray, guessed: np.ndarray, classes: int, counts: np.ndarray
) -> np.ndarray:
  """How often an example of class i was taken for class j: [C, C].

  Args:
    right: [N] ints.
    guessed: [N] ints.
    classes: C.
    counts: [N], how often each example counts.
  """
  cells = np.bincount(right * classes + guessed, counts, minlength=classes**2)
  return cells.reshape(classes, classes)


def rates(table: np.ndarray) -> dict[str, np.ndarray]:
  """Precision, recall and f1 of each class [C] of a table [C, C]; 0 / 0 is 0."""
  hits, guessed, there = table.diagonal(), table.sum(0), table.sum(1)
  return {
    'precision': _ratio(hits, guessed),
    'recall': _ratio(hits, there),
    'f1': _ratio(2 * hits, guessed + there),
  }


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)


def names(labels: Sequence[str]) -> tuple[str, ...]:
  """Of the numbers of `scores`."""
  return (*NAMES, *(f'{name}/{label}' for name in NAMES[1:] for label in labels))


def scores(right: np.ndarray, guessed: np.ndarray, labels: Sequence[str]) -> Scores:
  """Accuracy; macro precision, recall and f1, and those of each class by its label.

  Args:
    right: [N] ints, the class of each example.
    guessed: [N] ints, what it was taken for.
    labels: names of the classes.
  """
  classes = len(labels)

  def table(counts: np.ndarray) -> np.ndarray:
    return confusion(right, guessed, classes, counts)

  def accuracy(counts: np.ndarray) -> float:
    return float(counts @ (right == guessed) / counts.sum())

  def macro(name: str) -> Callable[[np.ndarray], float]:
    def score(counts: np.ndarray) -> float:
      cells = table(counts)
      seen = cells.sum(0) + cells.sum(1) > 0
      return float(rates(cells)[name][seen].mean())

    return score

  def single(name: str, index: int) -> Callable[[np.ndarray], float]:
    return lambda counts: float(rates(table(counts))[name][index])

  found = {'accuracy': accuracy} | {name: macro(name) for name in NAMES[1:]}
  for name in NAMES[1:]:
    found |= {f'{name}/{label}': single(name, i) for i, label in enumerate(labels)}
  cells = table(np.ones(len(right))).astype(int).tolist()
  notes = {'labels': list(labels), 'confusion': cells}
  return Scores(len(right), found, notes)
