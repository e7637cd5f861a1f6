"""TF-IDF and logistic regression on the splits of a task of labels.

  python -m benchmarks.classify_baseline --config=experiments/classify.py --data=DIR

What a classifier has to beat: words and pairs of words, weighed by TF-IDF, and a linear
model of scikit-learn (extra [parity]) over them, trained on the training split. One row
has the settings that scikit-learn takes by itself, one those that are best on the
validation split by macro F1. Prints a line of JSON each: accuracy and f1 of the test
split with their 95 % intervals, as python -m gptjax.evaluate does.
"""

import itertools
import json
import types
from typing import Any

import numpy as np

from gptjax import flags
from gptjax.mistakes import Mistake

OPTIONS = {
  'task': flags.Flag('', 'Which of c.mixture.tasks [the first].'),
  'split': flags.Flag('test', 'What is scored.', choices=('val', 'test')),
  'data': flags.DATA,
}
CHOICES = {'C': (1.0, 3.0, 10.0, 30.0), 'class_weight': (None, 'balanced')}


def main(values: types.SimpleNamespace) -> None:
  from gptjax import run
  from gptjax.evals import _confusion, _scores

  config = values.config.to_dict()
  name = values.task or next(iter(config['mixture']['tasks']))
  data = config['data'] or values.data
  splits = {
    split: run.make_task(config, name, split, data)
    for split in ('train', 'val', values.split)
  }
  labels: tuple[str, ...] = getattr(splits['train'], 'labels', ())
  if not labels:
    raise Mistake(f'c.mixture.tasks.{name} has no labels.')
  vectorizer, classifier = _scikit_learn()
  read = {split: _read(task, labels) for split, task in splits.items()}
  vectorizer.fit(read['train'][0])
  read = {split: (vectorizer.transform(x), y) for split, (x, y) in read.items()}

  def scores(split: str, settings: dict[str, Any]) -> Any:
    model = classifier(max_iter=1000, **settings).fit(*read['train'])
    features, right = read[split]
    return _confusion.scores(right, model.predict(features), labels)

  tried = [
    dict(zip(CHOICES, chosen, strict=True))
    for chosen in itertools.product(*CHOICES.values())
  ]
  best = max(tried, key=lambda s: _scores.numbers(scores('val', s))['f1'])
  for settings in ({}, best):
    found = scores(values.split, settings)
    numbers, ends = _scores.numbers(found), _scores.intervals(found)
    row = {'split': values.split, 'examples': found.units, **settings}
    for key in ('accuracy', 'f1'):
      row[key] = [round(x, 4) for x in (numbers[key], *ends[key])]
    print(json.dumps(row), flush=True)


def _read(task: Any, labels: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
  """Texts and classes: of labels, or of conversations that end in one."""
  texts, classes = [], []
  for example in map(task.example, range(len(task))):
    if hasattr(example, 'turns'):
      texts.append(example.turns[-2].text)
      classes.append(labels.index(example.turns[-1].text))
    else:
      texts.append(example.text)
      classes.append(example.label)
  return texts, np.array(classes)


def _scikit_learn() -> tuple[Any, Any]:
  """What makes features of texts, and the class of the model over them."""
  try:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
  except ImportError:
    raise Mistake("scikit-learn is wanted: pip install 'gptjax[parity]'.") from None
  words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
  return words, LogisticRegression


if __name__ == '__main__':
  flags.command(__doc__, main, OPTIONS, config=True)
