"""Files of rows, for the tests."""

import json


def write_rows(folder, **splits):
  """Files of JSON rows, or of raw bytes; a split's name may carry its extension after '__'."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, rows in splits.items():
    if not isinstance(rows, bytes):
      rows = b''.join(json.dumps(row).encode() + b'\n' for row in rows)
    stem, _, extension = name.partition('__')
    (folder / f"{stem}.{extension.replace('_', '.') or 'jsonl'}").write_bytes(rows)
  return folder


def make_rows(n, tag='q'):
  return [{'question': f'{tag} {i}?', 'steps': [f'{i}+1={i + 1}'], 'answer': str(i + 1)}
          for i in range(n)]
