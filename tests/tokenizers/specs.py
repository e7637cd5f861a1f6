"""Small tokenizer.json files of every kind of model, as their families write them."""


def added(index, content, special=True):
  flags = dict.fromkeys(['single_word', 'lstrip', 'rstrip', 'normalized'], False)
  return dict(id=index, content=content, special=special, **flags)


def spec(model, added_tokens, **parts):
  empty = dict.fromkeys(
    [
      'truncation',
      'padding',
      'normalizer',
      'pre_tokenizer',
      'post_processor',
      'decoder',
    ]
  )
  return dict(empty, version='1.0', added_tokens=added_tokens, model=model, **parts)


def table(names):
  return {name: i for i, name in enumerate(dict.fromkeys(names))}


ALPHABET = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 324)]]
BYTE_LEVEL = dict(type='ByteLevel', add_prefix_space=False, trim_offsets=True)


def byte_level(**more):
  """Shaped like Llama 3: the vocabulary is looked into before the merges."""
  vocab = table([*ALPHABET, 'th', 'the', '<|end_of_text|>', 'Ġthe'])
  n = len(vocab)
  return spec(
    dict(type='BPE', vocab=vocab, merges=['t h', 'th e', 'Ġ the'], ignore_merges=True),
    [
      added(vocab['<|end_of_text|>'], '<|end_of_text|>'),
      added(n, '<|begin_of_text|>'),
      added(n + 1, '<think>', special=False),
      added(n + 2, '<|eot_id|>'),
      added(n + 3, 'two words', special=False),
    ],
    pre_tokenizer=dict(
      type='Sequence',
      pretokenizers=[
        dict(
          type='Split',
          pattern={'Regex': r' ?\S+|\s'},
          behavior='Isolated',
          invert=False,
        ),
        dict(BYTE_LEVEL, use_regex=False),
      ],
    ),
    decoder=BYTE_LEVEL,
    truncation=dict(direction='Right', max_length=8, strategy='LongestFirst', stride=0),
    **more,
  )


def llama():
  """Shaped like Llama 2: U+2581 for a space, one before the text, bytes as fallback."""
  byte_names = [f'<0x{b:02X}>' for b in range(256)]
  letters = [*'\u2581thecaslo</>', '</', 's>', 'th', 'the', '\u2581the', '</s']
  model = dict(
    type='BPE',
    unk_token='<unk>',
    byte_fallback=True,
    fuse_unk=True,
    vocab=table(['<unk>', '<s>', '</s>', *byte_names, *letters]),
    # Merges that lead to control tokens, as conversions write them.
    merges=[
      '< /',
      's >',
      '</ s>',
      't h',
      'th e',
      '\u2581 the',
      '< s>',
      '</ s',
      '</s >',
    ],
  )
  special = [added(i, name) for i, name in enumerate(['<unk>', '<s>', '</s>'])]
  prepend = dict(type='Prepend', prepend='\u2581')
  replace = dict(type='Replace', pattern={'String': ' '}, content='\u2581')
  back = dict(type='Replace', pattern={'String': '\u2581'}, content=' ')
  strip = dict(type='Strip', content=' ', start=1, stop=0)
  kinds = [back, dict(type='ByteFallback'), dict(type='Fuse'), strip]
  return spec(
    model,
    special,
    normalizer=dict(type='Sequence', normalizers=[prepend, replace]),
    decoder=dict(type='Sequence', decoders=kinds),
  )


def unigram():
  """Shaped like T5: control tokens are pieces with the best score of all."""
  letters = [*'\u2581thecaslo</>', '\u2581the', 'cat']
  vocab = [['<pad>', 0.0], ['</s>', 0.0], ['<unk>', 0.0]]
  vocab += [[c, -3.0 - i / 10] for i, c in enumerate(letters)]
  special = [added(i, name) for i, (name, _) in enumerate(vocab[:3])]
  meta = dict(
    type='Metaspace', replacement='\u2581', prepend_scheme='always', split=True
  )
  return spec(
    dict(type='Unigram', unk_id=2, vocab=vocab, byte_fallback=False),
    [*special, added(len(vocab), '<extra_0>')],
    pre_tokenizer=meta,
    decoder=meta,
  )


def wordpiece():
  names = [
    '[PAD]',
    '[UNK]',
    '[CLS]',
    '[SEP]',
    '[',
    ']',
    'CLS',
    'the',
    'cat',
    '##s',
    'a',
  ]
  model = dict(
    type='WordPiece',
    unk_token='[UNK]',
    continuing_subword_prefix='##',
    max_input_chars_per_word=100,
    vocab=table(names),
  )
  special = [added(i, name) for i, name in enumerate(names[:4])]
  return spec(
    model,
    special,
    pre_tokenizer=dict(type='Whitespace'),
    decoder=dict(type='WordPiece', prefix='##', cleanup=False),
  )


def word_level():
  names = ['[UNK]', '<s>', '</s>', 'the', 'cat']
  special = [added(i, name) for i, name in enumerate(names[:3])]
  return spec(
    dict(type='WordLevel', vocab=table(names), unk_token='[UNK]'),
    special,
    pre_tokenizer=dict(type='WhitespaceSplit'),
  )
