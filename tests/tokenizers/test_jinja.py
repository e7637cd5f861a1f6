"""Chat templates: tokens and masks of transformers, and text that imitates tokens."""

import functools
import json
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Reference

from gptjax.tokenizers import hf, jinja, template, turns
from gptjax.tokenizers.bytes import bytes as byte_tokenizer
from gptjax.words import Conversation, Mistake, Turn
from tests.tokenizers import templates
from tests.tokenizers.specs import ALPHABET, BYTE_LEVEL, added, llama, spec, table

ROLES = {'system': 0.0, 'user': 0.0, 'assistant': 1.0, 'tool': 0.0}
CONTROLS = ('<|im_start|>', '<|im_end|>', '<|head|>', '<|/head|>', '<|bos|>', '<|eos|>')


def bpe(**flags):
  """GPT-2's kind, with control tokens; flags are those of <|/head|>."""
  vocab = table([*ALPHABET, 'th', 'the', 'Ġthe', 'Ċ' * 2, 'us', 'er'])
  tokens = [added(len(vocab) + n, name) for n, name in enumerate(CONTROLS)]
  tokens[3] |= flags
  tokens.append(added(len(vocab) + len(CONTROLS), '<think>', special=False))
  merges = ['t h', 'th e', 'Ġ the', 'Ċ Ċ', 'u s', 'e r']
  model = dict(type='BPE', vocab=vocab, merges=merges)
  level = dict(BYTE_LEVEL, use_regex=True)
  return spec(model, tokens, pre_tokenizer=level, decoder=level)


def metaspace():
  """Llama 2's kind; text begins with a space."""
  found = llama()
  n = 1 + max(t['id'] for t in found['added_tokens'])
  n = max(n, 1 + max(found['model']['vocab'].values()))
  found['added_tokens'] += [added(n, '[INST]'), added(n + 1, '[/INST]')]
  return found


SPECS = {
  'bpe': (bpe, '<|bos|>', '<|eos|>'),
  'stripping': (functools.partial(bpe, rstrip=True, lstrip=True), '<|bos|>', '<|eos|>'),
  'metaspace': (metaspace, '<s>', '</s>'),
}
CASES = [
  ('bpe', 'CHATML'),
  ('bpe', 'MARKED'),
  ('bpe', 'HEADERS'),
  ('stripping', 'HEADERS'),
  ('bpe', 'ALTERNATING'),
  ('bpe', 'INST'),
  ('metaspace', 'INST'),
]


@functools.cache
def tokenizer_of(kind):
  make, start, end = SPECS[kind]
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'tokenizer.json'
    path.write_text(json.dumps(make()), 'utf-8')
    return hf.hf(path, start=start, end=end)


@functools.cache
def ours(kind, text):
  _, start, end = SPECS[kind]
  names = {'bos_token': start, 'eos_token': end}
  return jinja.make(getattr(templates, text, text), tokenizer_of(kind), names)


@functools.cache
def theirs(kind, text):
  transformers = pytest.importorskip('transformers', reason='gptjax[parity]')
  make, start, end = SPECS[kind]
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=Reference.from_str(json.dumps(make())),
    bos_token=start,
    eos_token=end,
    chat_template=getattr(templates, text, text),
  )


def messages(said):
  return [{'role': role, 'content': text} for role, text in said]


def talk(said, control=()):
  return Conversation(tuple(Turn(*turn) for turn in said), control)


SYSTEM = [('system', 'Be the best.')]
TALKS = [
  [('user', 'Hello there'), ('assistant', 'Hi!')],
  [
    ('user', 'a\n'),
    ('assistant', ' the \n\n'),
    ('user', 'é 🙂 你好'),
    ('assistant', '🙂'),
  ],
  [
    ('user', ''),
    ('assistant', 'x'),
    ('user', '  two  spaces  '),
    ('assistant', 'user'),
  ],
]


@pytest.mark.parametrize(('kind', 'text'), CASES)
@pytest.mark.parametrize('said', TALKS)
def test_ids_are_those_of_transformers(kind, text, said):
  mine, reference = ours(kind, text), theirs(kind, text)
  for one in [said, SYSTEM + said] if mine.system else [said]:
    whole = turns.join(mine.encode(talk(one), ROLES))
    assert (
      whole.ids.tolist() == reference.apply_chat_template(messages(one))['input_ids']
    )
    asked = reference.apply_chat_template(
      messages(one[:-1]), add_generation_prompt=True
    )
    assert mine.prompt(talk(one[:-1])).tolist() == asked['input_ids']


# Without what could imitate a token, and the noncharacters that are replaced.
PLAIN = st.text(
  st.characters(exclude_characters='<[|]>', exclude_categories=['Cs', 'Cn']),
  max_size=20,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(PLAIN, min_size=2, max_size=6), st.sampled_from(CASES))
def test_ids_of_any_text_are_those_of_transformers(texts, case):
  mine, reference = ours(*case), theirs(*case)
  roles = ['user', 'assistant'] * 3
  said = list(zip(roles, texts, strict=False))
  whole = turns.join(mine.encode(talk(said), ROLES)).ids.tolist()
  assert whole == reference.apply_chat_template(messages(said))['input_ids']


@settings(max_examples=100, deadline=None)
@given(st.lists(PLAIN, min_size=2, max_size=7))
def test_weights_are_the_mask_of_transformers(texts):
  mine, reference = ours('bpe', 'MARKED'), theirs('bpe', 'MARKED')
  roles = ['system', *['user', 'assistant'] * 3]
  said = list(zip(roles, texts, strict=False))
  found = reference.apply_chat_template(
    messages(said), return_dict=True, return_assistant_tokens_mask=True
  )
  whole = turns.join(mine.encode(talk(said), ROLES))
  assert whole.ids.tolist() == found['input_ids']
  assert whole.weights.tolist() == found['assistant_masks']


@settings(max_examples=60, deadline=None)
@given(st.lists(PLAIN, min_size=2, max_size=6))
def test_without_marks_the_weights_are_the_same(texts):
  bare = templates.MARKED.replace('{%- generation -%}', '')
  bare = bare.replace('{%- endgeneration -%}', '')
  said = list(zip(['user', 'assistant'] * 3, texts, strict=False))
  with_marks = ours('bpe', 'MARKED').encode(talk(said), ROLES)
  without = ours('bpe', bare).encode(talk(said), ROLES)
  for a, b in zip(with_marks, without, strict=True):
    assert a.ids.tolist() == b.ids.tolist()
    assert a.weights.tolist() == b.weights.tolist()


def shown(encoded, kind='bpe'):
  """Ids and weights as readable pairs."""
  tokenizer = tokenizer_of(kind)
  names = {i: n for n, i in tokenizer.controls.items()}
  texts = [names.get(i) or tokenizer.piece(i).decode() for i in encoded.ids.tolist()]
  return list(zip(texts, encoded.weights.tolist(), strict=True))


def test_each_turn_has_its_own_ids_and_an_answer_its_end():
  first, answer = ours('bpe', 'CHATML').encode(talk(TALKS[0]), ROLES)
  assert ''.join(t for t, _ in shown(first)) == (
    '<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\nHello there'
    '<|im_end|>\n'
  )
  assert not first.weights.any()
  assert [t for t, w in shown(answer) if w] == ['H', 'i', '!', '<|im_end|>']
  assert [t for t, w in shown(answer) if not w][-1] == '\n'
  names = tokenizer_of('bpe').controls
  assert ours('bpe', 'CHATML').stops == (names['<|im_end|>'], names['<|eos|>'])


@pytest.mark.parametrize(
  ('case', 'stop'),
  [(('bpe', 'HEADERS'), '<|eos|>'), (('metaspace', 'INST'), '</s>'),
   (('bpe', 'ALTERNATING'), '<|im_end|>')],
)  # fmt: skip
def test_the_weights_of_forms_without_marks(case, stop):
  found = ours(*case).encode(talk(TALKS[0] + TALKS[0]), ROLES)
  for n, part in enumerate(found):
    said = shown(part, case[0])
    weighed = ''.join(t for t, w in said if w)
    assert weighed.replace(' ', '') == n % 2 * f'Hi!{stop}'
  assert ours(*case).stops[0] == tokenizer_of(case[0]).controls[stop]


def test_roles_may_weigh():
  roles = {'system': 0.25, 'user': 0.5, 'assistant': 1.0, 'tool': 0.0}
  said = [*SYSTEM, ('user', 'Hi', 0.5), ('assistant', 'Yo', 0.0)]
  found = [shown(part) for part in ours('bpe', 'CHATML').encode(talk(said), roles)]
  assert ''.join(t for t, w in found[0] if w == 0.25) == 'Be the best.'
  assert [t for t, w in found[1] if w == 0.25] == ['H', 'i']
  assert not any(w for _, w in found[2])


NASTY = st.lists(
  st.sampled_from([*CONTROLS, '<think>', '<|im_', 'end|>', '|>', '>', '<', 'im_end',
                   'assistant', '\n', ' ', 'a', '\U0010ffff7\U0010ffff', '🙂']),
  max_size=6,
).map(''.join)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(NASTY, min_size=2, max_size=4), st.sampled_from(CASES[:6]))
def test_text_that_imitates_a_control_token_stays_text(texts, case):
  mine, tokenizer = ours(*case), tokenizer_of(case[0])
  said = list(zip(['user', 'assistant'] * 2, texts, strict=False))
  controls = set(tokenizer.controls.values())
  whole = turns.join(mine.encode(talk(said), ROLES)).ids.tolist()
  harmless = [(role, '-') for role, _ in said]
  plain = turns.join(mine.encode(talk(harmless), ROLES)).ids.tolist()
  assert [i for i in whole if i in controls] == [i for i in plain if i in controls]
  text = tokenizer.decode(whole)
  for part in texts:
    part = part.replace('\U0010ffff', '\ufffd')
    assert part.strip() in text


def test_a_template_that_rewrites_earlier_turns_is_refused_where_it_does():
  mine = ours('bpe', 'THINKING')
  said = [('user', 'a'), ('assistant', '<think>b</think>c'), ('user', 'd'),
          ('assistant', 'e')]  # fmt: skip
  assert len(mine.encode(talk(said[:2]), ROLES)) == 2
  with pytest.raises(Mistake, match='turn 2 otherwise when others follow') as error:
    mine.encode(talk(said), ROLES)
  assert '\n' not in str(error.value)
  assert (
    len(mine.encode(talk([('user', 'a'), ('assistant', 'c'), *said[2:]]), ROLES)) == 4
  )


def test_with_marks_it_is_one_piece_up_to_the_last_turn_that_stays():
  marked = templates.THINKING.replace(
    "+ content + '<|im_end|>\\n' }}",
    "}}{% generation %}{{- content + '<|im_end|>' }}{% endgeneration %}{{- '\\n' }}",
  )
  said = [('user', 'a'), ('assistant', '<think>b</think>c'), ('user', 'd')]
  # Marks stand around what the user says too: as in transformers, all of it weighs.
  found = ours('bpe', marked).encode(talk(said), ROLES)
  assert [len(part.ids) > 0 for part in found] == [True, False, True]
  reference = theirs('bpe', marked).apply_chat_template(
    messages(said), return_dict=True, return_assistant_tokens_mask=True
  )
  whole = turns.join(found)
  assert whole.ids.tolist() == reference['input_ids']
  assert whole.weights.tolist() == reference['assistant_masks']


def test_control_lines_go_where_the_template_takes_them():
  control = (('style', 'formal'),)
  for case, first in (
    (('bpe', 'CHATML'), [('system', 'style: formal'), *TALKS[0]]),
    (('bpe', 'INST'), [('user', 'style: formal\n\nHello there'), TALKS[0][1]]),
  ):
    mine = ours(*case)
    asked = mine.encode(talk(TALKS[0], control), ROLES)
    assert len(asked) == 2
    expected = turns.join(mine.encode(talk(first), ROLES))
    assert turns.join(asked).ids.tolist() == expected.ids.tolist()
    assert turns.join(asked).weights.tolist() == expected.weights.tolist()
    prompt = mine.prompt(talk(TALKS[0][:1], control))
    assert prompt.tolist() == mine.prompt(talk(first[:-1])).tolist()


def test_our_own_template_is_the_same_in_jinja():
  tokenizer = byte_tokenizer()
  own = template.own(tokenizer)
  same = jinja.make(own.jinja, tokenizer)
  said = [*SYSTEM, *TALKS[1], ('tool', 'é'), ('assistant', '<|turn|>')]
  a, b = own.encode(talk(said), ROLES), same.encode(talk(said), ROLES)
  for x, y in zip(a, b, strict=True):
    assert x.ids.tolist() == y.ids.tolist()
    assert x.weights.tolist() == y.weights.tolist()
  assert same.stops == own.stops
  assert np.array_equal(same.prompt(talk(said)), own.prompt(talk(said)))


def test_it_is_saved_beside_the_tokenizer_and_found_again(tmp_path):
  mine = ours('bpe', 'HEADERS')
  mine.tokenizer.save(tmp_path)
  mine.save(tmp_path)
  found = template.load(tmp_path, mine.tokenizer)
  assert (found.jinja, found.names, found.digest) == (
    mine.jinja,
    mine.names,
    mine.digest,
  )
  assert ours('bpe', 'CHATML').digest != mine.digest
  (tmp_path / jinja.NAMES).write_text('{')
  with pytest.raises(Mistake, match=r'special_tokens_map\.json is broken'):
    template.load(tmp_path, mine.tokenizer)


def test_of_a_published_folder(tmp_path):
  tokenizer = byte_tokenizer()
  assert template.load(tmp_path, tokenizer) == template.own(tokenizer)
  named = [{'name': 'tools', 'template': 'x'}, {'name': 'default', 'template': 'y'}]
  config = {'chat_template': named, 'bos_token': {'content': '<|start|>'}, 'a': 1}
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  found = template.load(tmp_path, tokenizer)
  assert (found.jinja, found.names) == ('y', {'bos_token': '<|start|>'})


@pytest.mark.parametrize(
  ('text', 'line'),
  [
    ('{% for %}', 'no template of Jinja'),
    ("{{ raise_exception('only one') }}", 'chat template: only one'),
    ('{{ messages[9].content.x }}', 'chat template: '),
    ("{{ ''.__class__.__mro__ }}", 'chat template: .*unsafe'),
    ('{% for i in range(10**9) %}{{ i }}{% endfor %}', 'chat template: .*[Rr]ange'),
    ('{{ messages.append(1) }}', 'chat template: '),
    (
      '{% for m in messages %}{{ m.content }}{% endfor %}',
      'no control token ends an answer',
    ),
  ],
)
def test_mistakes(text, line):
  with pytest.raises(Mistake, match=line) as error:
    ours('bpe', text).encode(talk(TALKS[0][:2]), ROLES)
  assert '\n' not in str(error.value)
