import html.parser
import re

import numpy as np
import pytest

from gptjax import view
from gptjax.data import loader
from gptjax.tokenizers.bytes import bytes as byte_tokenizer
from tests.data.fakes import Lines

TOKENIZER = byte_tokenizer()
HOSTILE = '<script>alert("x")</script>&amp;\x1b[31m\u202eevil\n\ttab\0 "\' é ↵'


@pytest.fixture
def batch():
  task = Lines(['ab c', HOSTILE, 'z' * 70])
  source = loader.make_source({'x': (task, 1.0)}, TOKENIZER, length=96, batch_size=2)
  return {k: np.asarray(x) for k, x in source.next().items()}


def test_text_shows_every_piece_with_weight_segment_and_positions():
  ids = [TOKENIZER.start, *b'hi\n', TOKENIZER.end]
  batch = {
    'tokens': np.array([[*ids[:-1], *ids[:2], 0]]),
    'targets': np.array([[*ids[1:], *ids[1:3], 0]]),
    'weights': np.array([[0, 0, 1, 0.5, 1, 1, 0]]),
    'segments': np.array([[1, 1, 1, 1, 2, 2, 0]]),
    'positions': np.array([[0, 1, 2, 3, 0, 1, 0]]),
  }
  assert view.rows_text(batch, TOKENIZER, 9).splitlines() == [
    'row 0: 7 places, 4 trained on, 1 of padding',
    '  segment 1, positions 0 to 3',
    '    read       <|start|>',
    '    weight 0   h│i',
    '    weight 1   ↵',
    '    weight 0.5 <|end|>',
    '  segment 2, positions 0 to 1',
    '    read       <|start|>',
    '    weight 1   h│i',
  ]


def test_a_label_is_shown_as_one():
  ids = [TOKENIZER.start, *b'hi', TOKENIZER.end, 2]
  batch = {
    'tokens': np.array([ids[:-1]]),
    'targets': np.array([ids[1:]]),
    'weights': np.array([[0, 0, 0, 1.0]]),
    'scores': np.array([[0, 0, 0, 2.0]]),
    'segments': np.array([[1, 1, 1, 1]]),
    'positions': np.array([[0, 1, 2, 3]]),
  }
  assert view.rows_text(batch, TOKENIZER, 9).splitlines()[2:] == [
    '    read       <|start|>',
    '    weight 0   h│i│<|end|>',
    '    weight 1   label 2',
  ]


def test_text_holds_nothing_that_a_terminal_obeys(batch):
  text = view.rows_text(batch, TOKENIZER, 2)
  assert text.count('row ') == 2
  assert all(c.isprintable() or c == '\n' for c in text)
  assert '\\x1b' in text
  assert '\\x00' in text
  assert '⇥' in text


class Page(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.tags, self.shown, self.titles = [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    assert not [k for k, _ in attrs if k.startswith('on') or k in ('src', 'href')]
    if tag == 'span':
      self.titles.append(dict(attrs)['title'])
      self.shown.append('')

  def handle_data(self, data):
    if self.shown:
      self.shown[-1] += data


def test_page_escapes_what_the_text_says(batch):
  page = Page()
  page.feed(view.rows_html(batch, TOKENIZER, 2))
  kinds = {'html', 'meta', 'title', 'style', 'h1', 'h2', 'p', 'i', 'small', 'span'}
  assert set(page.tags) == kinds
  real = int((batch['segments'] > 0).sum())
  starts = sum(len(set(row.tolist()) - {0}) for row in batch['segments'])
  assert len(page.titles) == real + starts
  assert '<' in page.shown
  assert all(re.fullmatch(r'id \d+, position \d+, [\w .]+', t) for t in page.titles)


def test_pieces_of_control_tokens_and_half_characters():
  assert view.show_piece(TOKENIZER, TOKENIZER.start) == '<|start|>'
  assert view.show_piece(TOKENIZER, 0xC3) == '\\xc3'
  assert view.show_piece(TOKENIZER, 999_999) == '<999999?>'


def test_signs_of_ours_are_told_from_those_of_the_text():
  class Words:
    controls, size = {}, 2

    def piece(self, index):
      return ['a\n│', '↵b'][index].encode()

  assert view.show_piece(Words(), 0) == 'a↵\\u2502'
  assert view.show_piece(Words(), 1) == '\\u21b5b'
