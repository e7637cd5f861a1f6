"""A file of prompts: JSON lines of {"prompt": "text", ...}, or of plain strings.

Lines of {"messages": [{"role": "user", "content": "text"}, ...]} are conversations.
"""

import json
import os

from etils import epath

from gptjax.tasks.conversations import turns_of
from gptjax.words import Conversation, Mistake


def read_prompts(path: str | os.PathLike[str]) -> list[str | Conversation]:
  """The prompts of a file in order; blank lines and other fields are passed over.

  Raises:
    Mistake: no such file, none in it, or a line that holds no prompt, with its number.
  """
  place = epath.Path(path)
  try:
    lines = place.read_bytes().splitlines()
  except OSError as e:
    raise Mistake(
      f'{path}: {e.strerror or e}; expected is a JSON lines file.'
    ) from None
  prompts = [
    _prompt(line, f'{path}:{number}')
    for number, line in enumerate(lines, 1)
    if line.strip()
  ]
  if not prompts:
    raise Mistake(f'{path} is empty: a line each of {{"prompt": "text"}} is expected.')
  return prompts


def _prompt(line: bytes, where: str) -> str | Conversation:
  try:
    record = json.loads(line)
  except UnicodeDecodeError:
    raise Mistake(f'{where}: no UTF-8.') from None
  except (ValueError, RecursionError) as e:
    raise Mistake(f'{where}: no JSON: {e}.') from None
  if isinstance(record, dict):
    if 'messages' in record:
      try:
        return Conversation(turns_of(record['messages']))
      except ValueError as e:
        raise Mistake(f'{where}: {e}.') from None
    if 'prompt' not in record:
      raise Mistake(f'{where}: no field "prompt"; fields: {", ".join(record)}.')
    record = record['prompt']
  if not isinstance(record, str):
    raise Mistake(f'{where}: a prompt is a string, not {type(record).__name__}.')
  return record
