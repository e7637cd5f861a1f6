"""What a model writes, against right answers: translations, summaries, replies.

Of each example the last turn of the assistant is to be written anew, from what comes
before it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from gptjax.evals import _scores, _text
from gptjax.generate import engine as engine_lib
from gptjax.generate import sampling
from gptjax.generate import text as text_lib
from gptjax.generate.engine import Engine
from gptjax.tokenizers.store import plain
from gptjax.words import (
  Conversation,
  Evaluator,
  Mistake,
  Model,
  Params,
  Scores,
  Task,
  Template,
  Tokenizer,
)


def text(
  *,
  model: Model,
  tokenizer: Tokenizer,
  task: Task,
  length: int,
  template: Template | None = None,
  every: int = 0,
  limit: int | None = None,
  scores: Sequence[str] = _text.NAMES,
  tokenize: str = '13a',
  max_tokens: int = 128,
  temperature: float = 0.0,
  seed: int = 0,
  slots: int = 32,
) -> Evaluator:
  """Scores of the answers to a task's conversations: those of `scores`, and

  length (mean tokens of an answer), stopped (share of the answers that ended by
  themselves) and, where the task can grade, grade (its mean).

  An example too long to be answered counts as one with an empty answer.

  Args:
    model: with a head 'lm'.
    tokenizer: of the model.
    task: conversations.
    length: tokens of context.
    template: how conversations are written.
    every: steps between two evaluations; 0: at the end only.
    limit: examples that are answered, from the first; None: all.
    scores: of bleu, chrf, rouge1, rouge2, rougeL, exact: see _text.py.
    tokenize: how BLEU cuts words: 13a, intl, zh (Chinese), char or none.
    max_tokens: of an answer.
    temperature: 0: always the likeliest token.
    seed: of the draws.
    slots: answers made at a time.

  Raises:
    Mistake: a task of another kind, no template, an unknown score or number.
  """
  if task.kind != 'conversation':
    raise Mistake(f'text answers conversations; {task.name} is of kind {task.kind}.')
  if template is None:
    raise Mistake(f'the tokenizer {tokenizer.name} has no template for conversations.')
  for key, value in (('max_tokens', max_tokens), ('slots', slots)):
    if value < 1:
      raise Mistake(f'{key}={value}: at least 1.')
  sampling.check(sampling.Settings(temperature, seed=seed))
  _text.check(scores, tokenize)
  task = _scores.first(task, limit)
  asked = [_asked(task, i) for i in range(len(task))]
  references = [_references(task, i) for i in range(len(task))]
  ids = [template.prompt(conversation).tolist() for conversation in asked]
  fits = [i for i, prompt in enumerate(ids) if len(prompt) < length]
  grade = getattr(task, 'grade', None)
  names = (*scores, *(('grade',) if grade else ()), 'length', 'stopped')
  machine: Engine | None = None

  def answer(weights: Params) -> list[text_lib.Result | None]:
    nonlocal machine
    prompts = [ids[i] for i in fits]
    if machine is None:
      size = text_lib.slots_and_length(
        tokenizer, prompts, context=length, max_tokens=max_tokens, most=slots
      )
      machine = engine_lib.make_engine(model, weights, **size)
    results: list[text_lib.Result | None] = [None] * len(ids)
    for i, result in zip(
      fits,
      text_lib.iterate_results(
        engine_lib.with_weights(machine, weights),
        tokenizer,
        prompts,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        stop_ids=template.stops,
      ),
      strict=True,
    ):
      results[i] = result
    machine = machine._replace(weights={})  # The weights are not ours to keep.
    return results

  def look(weights: Params) -> Scores:
    results = answer(weights)
    answers = [result.text.strip() if result else '' for result in results]
    found, notes = _text.score(answers, references, scores, tokenize)
    rows = [
      {'prompt': _shown(question), 'answer': said, 'references': right}
      for question, said, right in zip(asked, answers, references, strict=True)
    ]
    if grade:
      grades = [grade(task.example(i), said) for i, said in enumerate(answers)]
      found['grade'] = _scores.mean(grades)
      rows = [row | {'grade': g} for row, g in zip(rows, grades, strict=True)]
    found['length'] = _scores.mean([len(r.tokens) if r else 0 for r in results])
    found['stopped'] = _scores.mean(
      [bool(r and r.finish_reason == 'stop') for r in results]
    )
    if len(fits) < len(ids):
      notes['too long to be answered'] = str(len(ids) - len(fits))
    return Scores(len(ids), found, dict(notes), rows)

  return _scores.evaluator(look, every, names)


def _asked(task: Task, index: int) -> Conversation:
  """An example without its last answer and what comes after it."""
  example: Any = task.example(index)
  answers = [n for n, turn in enumerate(example.turns) if turn.role == 'assistant']
  if not answers:
    raise Mistake(f'{task.name}: example {index} has no turn of the assistant.')
  return example._replace(turns=example.turns[: answers[-1]])


def _references(task: Task, index: int) -> list[str]:
  """The right answers; the last answer of the example where the task knows no more."""
  known: Callable[[int], list[str]] | None = getattr(task, 'references', None)
  example: Any = task.example(index)
  said = [turn.text for turn in example.turns if turn.role == 'assistant'][-1:]
  ends = example.turns[-1].role == 'assistant'
  found = known(index) if known and ends else said
  return [plain(text).strip() for text in found]


def _shown(conversation: Conversation) -> str:
  return '\n'.join(f'{turn.role}: {turn.text}' for turn in conversation.turns)
