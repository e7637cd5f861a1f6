"""Scores of answers against references: BLEU, chrF, ROUGE, exact match.

BLEU and chrF are sacrebleu's (Papineni et al. 2002; Popovic 2015; Post 2018), from 0 to
100. ROUGE is rouge-score's F1 (Lin 2004), from 0 to 1, of the reference that fits best;
words are runs of Unicode letters and digits, which are its own on ASCII text, and
Chinese and Japanese characters one by one.
"""

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gptjax.evals import _scores
from gptjax.lookup import nearest
from gptjax.words import Mistake

Score = Callable[[np.ndarray], float]
References = Sequence[Sequence[str]]  # Right answers of each example.
ROUGE = ('rouge1', 'rouge2', 'rougeL')
NAMES = ('bleu', 'chrf', *ROUGE, 'exact')
TOKENIZE = ('13a', 'intl', 'zh', 'char', 'none')  # sacrebleu's that need no download.
_WORD = re.compile('[\u3040-\u30ff\u3400-\u9fff]|[^\\W_\u3040-\u30ff\u3400-\u9fff]+')


def check(names: Sequence[str], tokenize: str) -> None:
  """Raises Mistake for an unknown score, or one whose package is not there."""
  for name in names:
    if name not in NAMES:
      raise Mistake(f'scores has no {name!r}: {nearest(str(name), NAMES)}')
  if tokenize not in TOKENIZE:
    raise Mistake(f'tokenize={tokenize!r}: {nearest(str(tokenize), TOKENIZE)}')
  if {'bleu', 'chrf'} & {*names}:
    _need('sacrebleu')
  if {*ROUGE} & {*names}:
    _need('rouge_score.rouge_scorer')


def score(
  answers: Sequence[str],
  references: References,
  names: Sequence[str] = NAMES,
  tokenize: str = '13a',
) -> tuple[dict[str, Score], dict[str, str]]:
  """Scores by name, as functions of how often each answer counts, and signatures.

  Args:
    answers: one of each example.
    references: at least one of each example.
    names: of NAMES.
    tokenize: sacrebleu's way to cut words for BLEU: 13a, intl, zh, char ...
  """
  found: dict[str, Score] = {}
  notes: dict[str, str] = {}
  for name in ('bleu', 'chrf'):
    if name in names:
      found[name], notes[name] = _sacrebleu(name, answers, references, tokenize)
  wanted = [name for name in ROUGE if name in names]
  for name, values in _rouge(wanted, answers, references).items():
    found[name] = _scores.mean(values)
  if 'exact' in names:
    pairs = zip(answers, references, strict=True)
    found['exact'] = _scores.mean([answer in right for answer, right in pairs])
  return {name: found[name] for name in names}, notes


def _sacrebleu(
  name: str, answers: Sequence[str], references: References, tokenize: str
) -> tuple[Score, str]:
  """A corpus score that hangs on sums over sentences, and its signature."""
  sacrebleu = _need('sacrebleu')
  quiet = {'tokenize': tokenize, 'force': True}  # No guesses about tokenized input.
  metric = sacrebleu.BLEU(**quiet) if name == 'bleu' else sacrebleu.CHRF()
  most = max(map(len, references))
  streams = [
    [right[i] if i < len(right) else None for right in references] for i in range(most)
  ]
  sums = np.array(metric._extract_corpus_statistics(answers, streams), np.float64)

  def score(counts: np.ndarray) -> float:
    total = np.rint(counts @ sums).astype(np.int64).tolist()
    return metric._compute_score_from_stats(total).score

  return score, str(metric.get_signature())


class _Words:
  """rouge-score's interface of a tokenizer."""

  def tokenize(self, text: str) -> list[str]:
    """Words of a text in small letters."""
    return _WORD.findall(text.lower())


def _rouge(
  names: Sequence[str], answers: Sequence[str], references: References
) -> dict[str, list[float]]:
  """F1 of each answer by name."""
  if not names:
    return {}
  scorer = _need('rouge_score.rouge_scorer').RougeScorer(names, tokenizer=_Words())
  found: dict[str, list[float]] = {name: [] for name in names}
  for answer, right in zip(answers, references, strict=True):
    best = scorer.score_multi(right, answer)
    for name in names:
      found[name].append(best[name].fmeasure)
  return found


def _need(module: str) -> Any:
  try:
    return importlib.import_module(module)
  except ImportError:
    package = module.partition('.')[0].replace('_', '-')
    raise Mistake(
      f"the package {package} is wanted: pip install 'gptjax[eval]'."
    ) from None
