"""Continues prompts with a trained model.

  python -m gptjax.generate --run=runs/small --prompt='Hello, how are'
  python -m gptjax.generate --run=runs/small --prompts=FILE.jsonl --json > answers.jsonl
  python -m gptjax.generate --run=runs/small --prompt=Hi --n=3 --temperature=0.7
  python -m gptjax.generate --run=runs/chat --chat --prompt=Hi --control=style=formal

With --chat a prompt is what a user says, and the assistant answers; so it does where a
line of FILE.jsonl holds {"messages": [{"role", "content"}, ...]}. --control asks for
what the data of the run named so (control=dict(style=...) of a task).

One prompt is answered as the text is made. Several prompts, or answers, come in order,
each under its prompt; with --json a line each of {"prompt", "text", "tokens",
"finish_reason", "answer"}: tokens are the new ids, finish_reason is stop (the end token
or --stop) or length. The same seed gives the same text, whatever else is asked for.

Exit codes: 0 done, 1 failure, 2 a mistake in the command, 130 Ctrl-C.
"""

import json
import types
from typing import Any

from gptjax import flags
from gptjax.mistakes import Mistake

OPTIONS = {
  'run': flags.RUN,
  'step': flags.STEP,
  'prompt': flags.Flag(None, 'The text to continue; may be empty.'),
  'prompts': flags.Flag(None, 'A file of JSON lines {"prompt": "text"}.'),
  'max_tokens': flags.Flag(128, 'New tokens of an answer, at most.', low=1),
  'temperature': flags.Flag(1.0, '0: always the likeliest token.', low=0),
  'top_k': flags.Flag(0, 'Draw from the k likeliest tokens; 0: from all.', low=0),
  'top_p': flags.Flag(
    1.0, 'Draw from the likeliest tokens that hold this probability.', high=1
  ),
  'min_p': flags.Flag(
    0.0, 'Draw from tokens at least this likely, the likeliest being 1.', low=0, high=1
  ),
  'repetition_penalty': flags.Flag(
    1.0, 'Above 1: tokens seen before become less likely.'
  ),
  'n': flags.Flag(1, 'Answers to each prompt; answer i draws with seed + i.', low=1),
  'seed': flags.Flag(0, 'Of the draws.', low=0, high=2**32 - 1),
  'stop': flags.Flag(
    [], 'Ends an answer before this text; may be repeated.', many=True
  ),
  'chat': flags.Flag(False, 'Prompts are what a user says to the assistant.'),
  'system': flags.Flag('', 'With --chat: what the system says before the user.'),
  'control': flags.Flag(
    [], 'What is asked for, key=value such as style=formal; may be repeated.', many=True
  ),
  'json': flags.Flag(False, 'JSON lines.'),
}
SAMPLING = ('temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty', 'seed')


def main(values: types.SimpleNamespace) -> None:
  """Continues prompts."""
  if not values.run:
    raise Mistake('--run=DIR is needed: the folder of a trained run.')
  if (values.prompt is None) == (values.prompts is None):
    raise Mistake('one of --prompt=TEXT and --prompts=FILE.jsonl is needed, not both.')
  if '' in values.stop:
    raise Mistake('--stop is empty: it would end every answer before it begins.')
  if values.system and not values.chat:
    raise Mistake('--system goes with --chat.')
  control = dict(map(_control, values.control))
  # JAX takes seconds to import; mistakes come first.
  from gptjax import screen
  from gptjax.generate import engine, prompts, sampling, text
  from gptjax.run import open_run
  from gptjax.tokenizers.store import plain

  settings: dict[str, Any] = {name: getattr(values, name) for name in SAMPLING}
  sampling.check(sampling.Settings(**settings))
  settings |= {name: getattr(values, name) for name in ('max_tokens', 'n', 'stop')}
  asked = (
    [values.prompt] if values.prompts is None else prompts.read_prompts(values.prompts)
  )
  asked = [plain(prompt) if isinstance(prompt, str) else prompt for prompt in asked]
  if values.chat:
    asked = [text.said_by_user(prompt, values.system) for prompt in asked]
  screen.compile_cache(True)
  run = open_run(values.run, step=values.step)
  writing: dict[str, Any] = {
    'template': run.template,
    'control': run.check_control(control),
  }
  size = text.slots_and_length(
    run.tokenizer,
    asked,
    context=run.length,
    max_tokens=values.max_tokens,
    n=values.n,
    **writing,
  )
  settings |= writing
  machine = engine.make_engine(run.model, run.weights, **size)
  if len(asked) * values.n == 1 and not values.json:
    for piece in text.stream_text(machine, run.tokenizer, asked, **settings):
      print(piece.text, end='', flush=True)
    print()
    return
  for result in text.iterate_results(machine, run.tokenizer, asked, **settings):
    print(_line(result) if values.json else _block(result), flush=True)


def _control(given: str) -> tuple[str, str]:
  key, equals, value = given.partition('=')
  if not (key and equals and value):
    raise Mistake(f'--control={given}: allowed is key=value, such as style=formal.')
  return key, value


def _line(result: Any) -> str:
  names = ('text', 'tokens', 'finish_reason', 'answer')
  found = {'prompt': _said(result.prompt)}
  if not isinstance(result.prompt, str):
    turns = result.prompt.turns
    found['messages'] = [{'role': t.role, 'content': t.text} for t in turns]
  found |= {n: getattr(result, n) for n in names}
  return json.dumps(found, ensure_ascii=False)


def _block(result: Any) -> str:
  quoted = _said(result.prompt).replace('\n', '\n> ')
  return f'> {quoted}\n{result.text}\n'


def _said(prompt: Any) -> str:
  """A text, or what is said last in a conversation."""
  return prompt if isinstance(prompt, str) else prompt.turns[-1].text


if __name__ == '__main__':
  flags.command(__doc__, main, OPTIONS)
