"""What a kill has left of a preparation is cleared, and what is being prepared is not."""

import os
import subprocess
import sys

from rim_jax.data import records


def make_old(path):
  path.mkdir()
  (path / 'part').write_text('half')
  os.utime(path, (0, 0))


def test_what_a_kill_has_left_goes_at_the_next_preparation(tmp_path):
  make_old(tmp_path / 'incomplete.dead')
  make_old(tmp_path / 'prepared')
  with records.make_scratch(tmp_path) as made:
    assert os.path.isdir(made) and sorted(os.listdir(tmp_path)) == sorted(
        [os.path.basename(made), 'prepared'])
  assert os.listdir(tmp_path) == ['prepared']


def test_what_another_process_prepares_stays(tmp_path):
  code = ('import os, pathlib, sys\nfrom rim_jax.data import records\n'
          'with records.make_scratch(pathlib.Path(sys.argv[1])) as made:\n'
          '  os.utime(made, (0, 0))\n  print(made, flush=True)\n  sys.stdin.readline()\n')
  with subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE, text=True) as other:
    made = other.stdout.readline().strip()
    with records.make_scratch(tmp_path):
      assert os.path.isdir(made)
    other.stdin.write('\n')
