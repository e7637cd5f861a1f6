"""Text files against naive reading, and every kind of bad input."""

import bz2
import gzip
import lzma
import os
import pathlib
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.sources import files, names, records
from gptjax.sources.text import text
from gptjax.words import Mistake
from tests import fakefs

_SPACE = ' \t\r\v\f'


def all_of(source):
  return [source[i]['text'] for i in range(len(source))]


def naive_lines(content: str) -> list[str]:
  lines = [x.removesuffix('\r') for x in content.split('\n')]
  return [x for x in lines if x.strip(_SPACE)]


def naive_paragraphs(content: str) -> list[str]:
  found, block = [], []
  for line in [*content.split('\n'), '']:
    if line.strip(_SPACE):
      block.append(line)
    elif block:
      found.append('\n'.join(block).removesuffix('\r'))
      block = []
  return found


pieces = st.lists(
  st.one_of(
    st.sampled_from(['\n', '\n\n', '\r\n', '\r\n\r\n', ' ', '\t\n', ' \n', '\r', 'a']),
    st.text(st.characters(exclude_categories=['Cs']), max_size=6),
  ),
  max_size=30,
).map(''.join)


@settings(deadline=None, max_examples=150)
@given(content=pieces, chunk=st.integers(1, 40), bom=st.booleans())
def test_offsets_equal_naive_reading(tmp_path_factory, content, chunk, bom):
  content = content.removeprefix('\ufeff')
  path = tmp_path_factory.mktemp('text') / 'a.txt'
  path.write_bytes((b'\xef\xbb\xbf' if bom else b'') + content.encode())
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(files, 'CHUNK', chunk)  # Documents across chunks of any size.
    expected = {
      'file': [content] if content.strip(_SPACE + '\n') else [],
      'line': naive_lines(content),
      'paragraph': naive_paragraphs(content),
    }
    for document, documents in expected.items():
      if documents:
        source = text(str(path), document=document)
        assert all_of(source) == documents
        for i, one in enumerate(documents):
          line = int(source.where(i).rpartition(':')[2]) if document != 'file' else 1
          assert content.split('\n')[line - 1].startswith(one.split('\n')[0])
      else:
        with pytest.raises(Mistake, match=r'a\.txt is empty'):
          text(str(path), document=document)


def test_several_files_in_order_of_names(tmp_path):
  (tmp_path / 'b').mkdir()
  (tmp_path / 'b' / 'one.md').write_text('eins\n\nzwei')
  (tmp_path / 'a.md').write_text('null')
  (tmp_path / 'c.md').write_text('drei\nvier\n')
  source = text(f'{tmp_path}/**/*.md', document='line')
  assert all_of(source) == ['null', 'eins', 'zwei', 'drei', 'vier']
  assert source.where(2) == f'{tmp_path}/b/one.md:3'
  assert source.where(4) == f'{tmp_path}/c.md:2'
  assert all_of(pickle.loads(pickle.dumps(source))) == all_of(source)
  with pytest.raises(IndexError):
    source[5]
  with pytest.raises(IndexError):
    source[-1]


@pytest.mark.parametrize('module', [gzip, lzma, bz2])
@pytest.mark.parametrize('document', ['file', 'paragraph', 'line'])
def test_compressed_equals_plain(tmp_path, module, document):
  suffix = {gzip: 'gz', lzma: 'xz', bz2: 'bz2'}[module]
  for name, content in (('a', '一二三\n\n四五\n'), ('b', 'x\n\n\ny\n')):
    (tmp_path / f'{name}.txt').write_text(content, encoding='utf-8')
    with module.open(tmp_path / f'{name}.txt.{suffix}', 'wt', encoding='utf-8') as file:
      file.write(content)
  plain = text(f'{tmp_path}/*.txt', document=document)
  packed = text(f'{tmp_path}/*.{suffix}', document=document)
  assert all_of(packed) == all_of(plain)
  assert packed.digest == plain.digest
  assert packed.where(1).replace(f'.{suffix}', '') == plain.where(1)
  mixed = text(f'{tmp_path}/a.txt,{tmp_path}/b.txt.{suffix}', document=document)
  assert all_of(mixed) == all_of(plain)
  assert all_of(pickle.loads(pickle.dumps(mixed))) == all_of(plain)


def test_the_digest_is_of_the_bytes_and_of_nothing_else(tmp_path):
  (tmp_path / 'a.txt').write_text('one\ntwo\n')
  (tmp_path / 'elsewhere.md').write_text('one\ntwo\n')
  digest = text(f'{tmp_path}/a.txt').digest
  assert text(f'{tmp_path}/elsewhere.md').digest == digest
  assert text(f'{tmp_path}/a.txt', document='line').digest != digest
  stat = os.stat(tmp_path / 'a.txt')
  (tmp_path / 'a.txt').write_text('one\ntwp\n')
  os.utime(tmp_path / 'a.txt', ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert text(f'{tmp_path}/a.txt').digest != digest


def test_a_border_between_files_counts(tmp_path):
  for name, content in (('1a', 'ab'), ('1b', 'c'), ('2a', 'a'), ('2b', 'bc')):
    (tmp_path / name).write_text(content)
  assert text(f'{tmp_path}/1*').digest != text(f'{tmp_path}/2*').digest


def test_a_folder_gives_its_text_files(tmp_path):
  (tmp_path / 'deep' / 'er').mkdir(parents=True)
  (tmp_path / '.git').mkdir()
  (tmp_path / 'deep' / 'er' / 'a.md').write_text('# a')
  (tmp_path / 'b').write_text('b')
  (tmp_path / '.hidden').write_text('no')
  (tmp_path / '.git' / 'config').write_text('no')
  (tmp_path / 'picture.png').write_bytes(b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR')
  (tmp_path / 'all.tar.gz').write_bytes(b'no')
  (tmp_path / 'all.zip').write_bytes(b'no')
  assert all_of(text(str(tmp_path))) == ['b', '# a']


def test_more_files_than_are_mapped_at_a_time(tmp_path, monkeypatch):
  monkeypatch.setattr(files, '_MAPS', 3)
  for i in range(20):
    (tmp_path / f'{i:02}.txt').write_text(f'{i}\n{i}')
  source = text(str(tmp_path), document='line')
  order = [*range(0, 40, 7), *range(39, -1, -3)]
  assert [source[i]['text'] for i in order] == [str(i // 2) for i in order]


def test_names_with_commas_brackets_and_repeats(tmp_path):
  odd = tmp_path / 'a,b [1].txt'
  odd.write_text('odd')
  assert all_of(text(str(odd))) == ['odd']
  (tmp_path / 'c.txt').write_text('c')
  both = f'{tmp_path}/c.txt, {tmp_path}/*.txt'
  assert all_of(text(both)) == ['c', 'odd']


def test_remote_files(monkeypatch):
  fakefs.clear()
  monkeypatch.setattr(files, 'CHUNK', 7)
  from etils import epath

  epath.Path('fake://bucket/set/a.txt').write_text('one\ntwo\n')
  packed = gzip.compress(b'drei\n\nvier\n')
  epath.Path('fake://bucket/set/b.txt.gz').write_bytes(packed)
  source = text('fake://bucket/set', document='line')
  assert all_of(source) == ['one', 'two', 'drei', 'vier']
  assert source.where(3).endswith('set/b.txt.gz:3')
  assert all_of(text('fake://bucket/set/*.txt')) == ['one\ntwo\n']
  with pytest.raises(Mistake, match='no file matches fake://bucket/set/'):
    text('fake://bucket/set/*.md')
  fakefs.clear()


BAD = {
  'bad utf-8': (b'fine\nbro\xffken\nfine\n', r'a\.txt:2: not UTF-8 \(byte 0xff at 8\)'),
  'cut character': (b'fine\n\xe4\xb8', r'a\.txt:2: not UTF-8 \(byte 0xe4 at 5\)'),
  'utf-16': ('two words'.encode('utf-16'), r'a\.txt:1: UTF-16, and only UTF-8'),
  'empty': (b'', r'a\.txt is empty'),
  'blank': (b' \n\t\r\n\n', r'a\.txt is empty'),
  'only a bom': (b'\xef\xbb\xbf', r'a\.txt is empty'),
}


@pytest.mark.parametrize('document', ['file', 'paragraph', 'line'])
@pytest.mark.parametrize('case', BAD)
def test_bad_input(tmp_path, case, document):
  content, message = BAD[case]
  (tmp_path / 'a.txt').write_bytes(content)
  (tmp_path / 'b.txt').write_text('good')
  with pytest.raises(Mistake, match=f"{message}.*on_bad='skip'") as error:
    text(str(tmp_path), document=document)
  assert '\n' not in str(error.value)
  assert str(error.value).count('on_bad') == 1
  source = text(str(tmp_path), document=document, on_bad='skip')
  assert source.skipped == 1
  kept = ['fine', 'fine', 'good'] if case == 'bad utf-8' else ['fine', 'good']
  if document == 'line' and case in ('bad utf-8', 'cut character'):
    assert all_of(source) == kept
  else:
    assert all_of(source) == ['good']


@pytest.mark.parametrize('suffix', ['gz', 'xz', 'bz2'])
def test_cut_and_damaged_archives(tmp_path, suffix):
  module = {'gz': gzip, 'xz': lzma, 'bz2': bz2}[suffix]
  whole = module.compress(os.urandom(5000))
  (tmp_path / 'b.txt').write_text('good')
  for content in (whole[:-20], b'no archive', whole[:600] + b'?' * 40 + whole[640:]):
    (tmp_path / f'a.txt.{suffix}').write_bytes(content)
    with pytest.raises(Mistake, match=rf'a\.txt\.{suffix} is cut or damaged'):
      text(f'{tmp_path}/*')
    source = text(f'{tmp_path}/*', on_bad='skip')
    assert all_of(source) == ['good']
    assert source.skipped == 1


def test_what_cannot_be_unpacked(tmp_path):
  (tmp_path / 'a.txt.zst').write_bytes(b'\x28\xb5\x2f\xfd')
  with pytest.raises(Mistake, match=r'zstd is not read: unpack it'):
    text(str(tmp_path))


def test_huge_documents(tmp_path, monkeypatch):
  monkeypatch.setattr(records, 'LONGEST', 1000)
  monkeypatch.setattr(files, 'CHUNK', 64)
  (tmp_path / 'a.txt').write_text('short\n' + 'x' * 1001 + '\nend\n')
  with pytest.raises(Mistake, match=r'a\.txt:2: one line of over 1,000 bytes'):
    text(str(tmp_path), document='line')
  with pytest.raises(Mistake, match=r"a\.txt:1: one file.*document='paragraph'"):
    text(str(tmp_path))
  source = text(str(tmp_path), document='line', on_bad='skip')
  assert (all_of(source), source.skipped) == (['short', 'end'], 1)


def test_nothing_found(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'notes').mkdir()
  (tmp_path / 'notes' / 'chapter.txt').write_text('x')
  (tmp_path / 'empty').mkdir()
  here = re.escape(str(tmp_path))
  table = {
    'nots/*.txt': f"nots.*searched folder {here}; did you mean 'notes'",
    'notes/chaptre.txt': f"searched folder {here}/notes; did you mean 'chapter.txt'",
    'notes/*.md': f'searched folder {here}/notes, which holds chapter.txt',
    'empty': f'no text file in folder {here}/empty',
    'empty/*': f'searched folder {here}/empty, which is empty',
    '': 'no path given',
    ' , ': 'no path given',
    'notes/chapter.txt,no.txt': 'no file matches no.txt',
  }
  for path, message in table.items():
    with pytest.raises(Mistake, match=message) as error:
      text(path)
    assert '\n' not in str(error.value)


def test_wrong_words(tmp_path):
  (tmp_path / 'a').write_text('a')
  with pytest.raises(Mistake, match="did you mean 'paragraph'"):
    text(str(tmp_path), document='paragraphs')
  with pytest.raises(Mistake, match=r"on_bad='ignore'.*Allowed: error, skip"):
    text(str(tmp_path), on_bad='ignore')


@pytest.mark.skipif(os.geteuid() == 0, reason='root reads everything')
def test_no_permission(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('a')
  path.chmod(0)
  with pytest.raises(Mistake, match=r'a\.txt cannot be read: Permission denied'):
    text(str(path))


def test_a_file_that_changed_is_noticed(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('one\ntwo\n')
  source = text(str(path), document='line')
  elsewhere = pickle.dumps(source)
  path.write_text('one\n')
  other = text(str(path), document='line')
  assert all_of(other) == ['one']
  with pytest.raises(Mistake, match='has changed since it was opened'):
    source[1]
  with pytest.raises(Mistake, match='has changed since it was opened'):
    pickle.loads(elsewhere)


def test_formats_are_told_from_names():
  table = {
    'a.txt': 'text', 'a.md': 'text', 'A.JSONL': 'jsonl', 'a.jsonl.gz': 'jsonl',
    'a.json.xz': 'jsonl', 'a.ndjson': 'jsonl', 'a.parquet': 'parquet', 'a.gz': 'text',
    'x.jsonl/a': 'text',
  }  # fmt: skip
  assert {name: names.format_of(name) for name in table} == table


def test_no_temporary_file_is_left(tmp_path, monkeypatch):
  import tempfile

  spool = tmp_path / 'spool'
  spool.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(spool))
  (tmp_path / 'a.txt.gz').write_bytes(gzip.compress(b'one'))
  source = text(str(tmp_path / 'a.txt.gz'))
  assert all_of(source) == ['one']
  assert not list(pathlib.Path(spool).iterdir())
