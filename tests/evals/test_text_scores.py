"""BLEU, chrF and ROUGE against the packages themselves and by hand."""

import random
import sys

import numpy as np
import pytest

from gptjax.evals import _text
from gptjax.words import Mistake

TEXT = 'the a cat dog sat on mat, quickly it ran away. not is Here ( 3.5 %'
WORDS = TEXT.split()


@pytest.fixture(scope='module')
def corpus():
  """Answers, some of them empty, and one to three references of each."""
  draw = random.Random(0)

  def sentence():
    return ' '.join(draw.choices(WORDS, k=draw.randint(1, 12)))

  references = [[sentence() for _ in range(draw.randint(1, 3))] for _ in range(150)]
  answers = [
    ' '.join(draw.sample(right[0].split(), min(6, len(right[0].split()))))
    if draw.random() < 0.7
    else sentence()
    for right in references
  ]
  answers[3] = answers[77] = ''
  answers[5] = references[5][-1]
  return answers, references


def value(name, answers, references, counts=None, **settings):
  scores, _ = _text.score(answers, references, [name], **settings)
  return scores[name](np.ones(len(answers)) if counts is None else counts)


def streams(references):
  most = max(map(len, references))
  return [[r[i] if i < len(r) else None for r in references] for i in range(most)]


@pytest.mark.parametrize('tokenize', ['13a', 'char', 'intl'])
def test_bleu_equals_sacrebleu(corpus, tokenize):
  sacrebleu = pytest.importorskip('sacrebleu', reason='extra [eval]')
  answers, references = corpus
  metric = sacrebleu.BLEU(tokenize=tokenize)
  want = metric.corpus_score(answers, streams(references)).score
  assert 0 < value('bleu', answers, references, tokenize=tokenize) == want
  _, notes = _text.score(answers, references, ['bleu'], tokenize)
  assert notes['bleu'] == str(metric.get_signature())
  assert notes['bleu'].startswith('nrefs:var|case:mixed|eff:no|tok:')


def test_chrf_equals_sacrebleu(corpus):
  sacrebleu = pytest.importorskip('sacrebleu', reason='extra [eval]')
  answers, references = corpus
  want = sacrebleu.corpus_chrf(answers, streams(references)).score
  assert 0 < value('chrf', answers, references) == want


@pytest.mark.parametrize('name', ['bleu', 'chrf'])
def test_counts_are_copies_of_sentences(corpus, name):
  sacrebleu = pytest.importorskip('sacrebleu', reason='extra [eval]')
  answers, references = corpus
  counts = np.random.default_rng(0).integers(3, size=len(answers))
  copies = [i for i, count in enumerate(counts) for _ in range(count)]
  metric = {'bleu': sacrebleu.BLEU, 'chrf': sacrebleu.CHRF}[name]()
  want = metric.corpus_score(
    [answers[i] for i in copies], streams([references[i] for i in copies])
  ).score
  assert value(name, answers, references, counts.astype(float)) == want


@pytest.mark.parametrize('name', _text.ROUGE)
def test_rouge_equals_rouge_score_on_ascii(corpus, name):
  package = pytest.importorskip('rouge_score.rouge_scorer', reason='extra [eval]')
  answers, references = corpus
  scorer = package.RougeScorer([name])
  want = np.mean(
    [
      max(scorer.score(reference, answer)[name].fmeasure for reference in right)
      for answer, right in zip(answers, references, strict=True)
    ]
  )
  assert value(name, answers, references) == pytest.approx(want, rel=1e-12)


def test_rouge_by_hand():
  pytest.importorskip('rouge_score', reason='extra [eval]')
  # 2 of 2 words are right, 2 of 3 are found: F1 = 2 * 1 * 2/3 / (1 + 2/3).
  assert value('rouge1', ['The cat'], [['the cat sat']]) == pytest.approx(0.8)
  # Of bigrams 1 of 1, and 1 of 2.
  assert value('rouge2', ['The cat'], [['the cat sat']]) == pytest.approx(2 / 3)
  # 'the sat' is the longest common subsequence: 2 of 3 and 2 of 3.
  assert value('rougeL', ['the sat cat'], [['the cat sat']]) == pytest.approx(2 / 3)
  # The best of several references counts.
  assert value('rouge1', ['a b'], [['x', 'a b', 'y']]) == 1


def test_rouge_knows_words_that_are_not_ascii():
  pytest.importorskip('rouge_score', reason='extra [eval]')
  assert value('rouge1', ['schöne Grüße'], [['SCHÖNE grüße!']]) == 1
  assert value('rouge1', ['schöne Grüße'], [['schade grün']]) == 0
  assert value('rouge1', ['你好吗'], [['你好']]) == pytest.approx(0.8)


@pytest.mark.parametrize('name', _text.NAMES)
def test_empty_answers_score_nothing_and_right_ones_all(name):
  pytest.importorskip('rouge_score', reason='extra [eval]')
  pytest.importorskip('sacrebleu', reason='extra [eval]')
  references = [['a small cat sat on it'], ['and a dog ran far away']]
  assert value(name, ['', ''], references) == 0
  right = value(name, [r[0] for r in references], references)
  assert right == pytest.approx(100 if name in ('bleu', 'chrf') else 1)


def test_exact_match_is_of_any_reference():
  assert value('exact', ['a', 'b', ''], [['x', 'a'], ['B'], ['y']]) == 1 / 3


def test_mistakes(monkeypatch):
  with pytest.raises(Mistake, match=r"scores has no 'blue': did you mean 'bleu'"):
    _text.check(['blue'], '13a')
  with pytest.raises(Mistake, match="tokenize='13b': did you mean '13a'"):
    _text.check(['bleu'], '13b')
  monkeypatch.setitem(sys.modules, 'sacrebleu', None)
  with pytest.raises(Mistake, match=r"sacrebleu is wanted: .*'gptjax\[eval\]'"):
    _text.check(['bleu'], '13a')
  _text.check(['exact'], '13a')
