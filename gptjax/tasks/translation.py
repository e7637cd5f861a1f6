"""Translation: parallel files, a sentence a line, as a question and its answer."""

import functools
from collections.abc import Mapping
from typing import Any

from gptjax.sources.aligned import aligned
from gptjax.tasks import split as splitting
from gptjax.tasks.examples import ask, check_role, make_task, text_of
from gptjax.tasks.find import locate, of_split
from gptjax.tasks.split import Documents
from gptjax.words import Conversation, Mistake

INSTRUCTION = 'Translate from {source} to {target}.'
LANGUAGES = {
  'ar': 'Arabic', 'cs': 'Czech', 'de': 'German', 'en': 'English', 'es': 'Spanish',
  'fr': 'French', 'hi': 'Hindi', 'it': 'Italian', 'ja': 'Japanese', 'ko': 'Korean',
  'nl': 'Dutch', 'pl': 'Polish', 'pt': 'Portuguese', 'ru': 'Russian', 'sv': 'Swedish',
  'tr': 'Turkish', 'uk': 'Ukrainian', 'zh': 'Chinese',
}  # fmt: skip


def translation(
  path: str = 'multi30k',
  source: str = 'en',
  target: str = 'de',
  split: str = 'train',
  instruction: str = INSTRUCTION,
  role: str = 'system',
  splits: Mapping[str, float] | None = None,
  val_path: str | None = None,
  test_path: str | None = None,
  on_bad: str = 'error',
  data: str | None = None,
  where: str = '',
) -> Documents:
  """The task of translating lines: a Conversation of a user and an assistant.

  path: of both files, with {} where they say the language: 'my/train.{}.gz'; or a set
    of the folder of data sets, such as 'multi30k' (en, de, fr).
  source, target: what stands in the place of {}.
  split: train, val, test or all.
  instruction: {source} and {target} in it are the languages' names; '': none.
  role: system, the instruction is a turn of its own; or user, it comes before the text.
  splits: fractions of val and test, by hash of the source; 0 is none.
  val_path, test_path: files of their own, like `path`.
  on_bad: error, or skip: pairs with an empty side are passed over and counted.
  data: the folder of data sets.
  where: the config key of these arguments.

  Raises:
    Mistake: no such files, or of different lengths; bad input; an empty split.
  """
  check_role(role)
  name = f'{path} {source}-{target}'
  shares = splitting.fractions(splits)
  path, split, shares = of_split(path, split, shares, val_path, test_path)
  if '{}' not in path:
    raise Mistake(
      f'path={path}: {{}} in it stands for the language, as in my/train.{{}}.gz.'
    )
  sides = [locate(path.replace('{}', language), data) for language in (source, target)]
  said = instruction.replace('{source}', LANGUAGES.get(source, source))
  said = said.replace('{target}', LANGUAGES.get(target, target))
  return make_task(
    name,
    'conversation',
    aligned(*sides, on_bad),
    functools.partial(_conversation, said, role),
    split=split,
    shares=shares,
    on_bad=on_bad,
    where=where,
  )


def _conversation(said: str, role: str, record: Mapping[str, Any]) -> Conversation:
  return ask(text_of(record, 'source'), text_of(record, 'target'), said, role)
