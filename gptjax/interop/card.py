"""The model card: README.md of a folder for other tools."""

from collections.abc import Mapping
from typing import Any

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
{license}tags:
- gptjax
---

# {title}

A language model of {params:,} parameters ({dtype}), written by gptjax from `{name}`.

{about}

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained('.')
model = AutoModelForCausalLM.from_pretrained('.')
{use}
```

## Limits

- {control}
- Nothing is known here of what it says wrongly, or of whom it treats unfairly, but what
  was measured above. Look at its answers before others see them.
"""
_CHAT = """\
chat = [{'role': 'user', 'content': 'Hello!'}]
inputs = tokenizer.apply_chat_template(
  chat, add_generation_prompt=True, return_tensors='pt', return_dict=True
)
output = model.generate(**inputs, max_new_tokens=100)
print(tokenizer.decode(output[0, inputs['input_ids'].shape[1]:]))"""
_TEXT = """\
inputs = tokenizer('Once upon a time', return_tensors='pt')
output = model.generate(**inputs, max_new_tokens=100)
print(tokenizer.decode(output[0], skip_special_tokens=True))"""
_CONTROL = """\
Control tokens: gptjax never reads one in what a user says. Other tools may read text
  that imitates one (such as `{token}`) as the token itself, and so let a user end a
  turn or speak in another role. Where that matters, encode user text with
  `split_special_tokens=True`."""


def card(
  name: str, about: Mapping[str, Any], params: int, dtype: str, template: str
) -> str:
  """The text of the card.

  Args:
    name: what the weights come from.
    about: what else is known, by name; `token` is one of its control tokens, `license`
      what its licence is called.
    params: numbers in the weights.
    dtype: of the weights in the folder.
    template: the chat template, '' for none.
  """
  known = dict(about)
  token, license_ = known.pop('token', ''), known.pop('license', '')
  lines = [f'- {key}: {value}' for key, value in known.items()]
  return _CARD.format(
    title=name.rstrip('/').rpartition('/')[2].rpartition(':')[2] or name,
    params=params,
    dtype=dtype,
    name=name,
    license=f'license: {license_}\n' if license_ else '',
    about='\n'.join(lines),
    use=_CHAT if template else _TEXT,
    control=_CONTROL.format(token=token),
  )
