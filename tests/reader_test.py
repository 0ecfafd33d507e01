"""The one reader: what is no regular file, no UTF-8, no JSON or of another shape is told in a line.
"""

import dataclasses
import json
import os
import typing

import pytest

from rim_jax import reader
from rim_jax.errors import UserError


class Told(typing.TypedDict):
  step: int
  acc: typing.NotRequired[float | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  name: str
  right: bool
  accs: list[float] | None = None
  kind: typing.Literal['a', 'b'] = 'a'
  more: dict = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize('raw, told', [
    (b'', 'Expecting value'), (b'{"step": ', 'Expecting value'),
    (b'[' * 100_000 + b']' * 100_000, 'nested deeper than 100'),
    (b'{"step":' + b'[' * 200 + b']' * 200 + b'}', 'nested deeper than 100'),
    (b'\xff{}', 'no UTF-8'), (b'{"step": "\xe9"}', 'no UTF-8'),
    (b'null', 'NoneType in place of what a Told has'), (b'[]', 'list in place of what a Told has'),
    (b'{}', 'it lacks step'), (b'{"step": true}', 'step: bool in place of a int'),
    (b'{"step": 1.0}', 'step: float in place of a int'),
    (b'{"step": 1, "acc": "x"}', 'acc: str in place of a float'),
    (b'{"step": ' + b'9' * 5000 + b'}', 'more than 300 digits'),
    (b'{"step": -1' + b'0' * 400 + b'}', 'more than 300 digits'),
    (b'{"step": 1' + b'0' * 40 + b'}', 'step: 1.* is beyond 64 bits'),
    (b'{"step": 1, "acc": 1e99999999}', 'is no number that is finite'),
    (b'{"step": 1, "acc": NaN}', 'is no number that is finite')])
def test_what_is_no_such_json_is_told_in_one_line(tmp_path, raw, told):
  path = tmp_path / 'x.json'
  path.write_bytes(raw)
  with pytest.raises(UserError, match=told) as e:
    reader.load_json(path, 'make it anew', Told)
  text = str(e.value)
  assert text.startswith(f'{path}: is damaged (') and text.endswith('; make it anew')
  assert '\n' not in text and len(text) < 300


@pytest.mark.parametrize('make, told', [
    (lambda path: None, 'cannot be read (No such file or directory); write it'),
    (os.mkdir, 'cannot be read (Is a directory); make it anew'),
    (os.mkfifo, 'is no regular file'),
    (lambda path: path.symlink_to(path), 'cannot be read (Too many levels of symbolic links)')])
def test_only_regular_files_are_opened(tmp_path, make, told):
  path = tmp_path / 'x.json'
  make(path)
  absent = 'write it' if not path.is_symlink() and not path.exists() else ''
  with pytest.raises(UserError) as e:
    reader.load_json(path, 'make it anew', Told, absent=absent)
  assert told in str(e.value)
  for name in ('a' * 5000, 'a\0b'):
    with pytest.raises(UserError, match='cannot be read'):
      reader.read_text(f'{tmp_path}/{name}', 'shorten it')


def test_a_file_has_a_largest_size(tmp_path):
  path = tmp_path / 'x.json'
  path.write_text('12345')
  assert reader.read_bytes(path, '', most=5) == b'12345'
  with pytest.raises(UserError, match='has 5 bytes, more than 4; cut it'):
    reader.read_bytes(path, 'cut it', most=4)


def test_what_is_nested_a_little_is_read():
  tree = {'a': [[{'b': i} for i in range(200)]]}
  assert reader.parse_json(json.dumps(tree)) == tree
  deepest = b'[' * 100 + b']' * 100
  assert reader.parse_json(deepest)
  with pytest.raises(ValueError, match='nested deeper'):
    reader.parse_json(b'[' + deepest + b']')


def test_rows_keep_all_digits_and_lose_no_key():
  found = reader.parse_json('[1.10, 12345678901234567890123]', exact=True)
  assert list(map(str, found)) == ['1.10', '12345678901234567890123']
  for text in ('1e' + '9' * 30, '9' * 5000):
    with pytest.raises(ValueError, match='not JSON'):
      reader.parse_json(text, exact=True)
  twice = '[{"a": {"b": 1, "c": 2, "b": 3}}]'
  with pytest.raises(ValueError, match="^an object names 'b' twice$"):
    reader.parse_json(twice, exact=True)
  assert reader.parse_json(twice) == [{'a': {'b': 3, 'c': 2}}]  # as others' files are read


def test_a_value_is_checked_to_its_last_part():
  tree = {'name': 'x', 'right': True, 'accs': [0, 0.5], 'later': 3}
  found = reader.from_tree(Row, tree)
  assert found == Row(name='x', right=True, accs=[0, 0.5], more={'later': 3})
  assert reader.to_tree(found) == tree | {'kind': 'a'}
  for wrong, told in (({'right': 1}, 'right: int in place of a bool'),
                      ({'name': None}, 'name: NoneType in place of a str'),
                      ({'accs': [0.5, None]}, 'accs: NoneType in place of a float'),
                      ({'accs': 'ab'}, 'accs: str in place of a list'),
                      ({'kind': 'c'}, "kind: 'c' in place of 'a' or 'b'")):
    with pytest.raises(ValueError) as e:
      reader.from_tree(Row, tree | wrong)
    assert str(e.value) == told
