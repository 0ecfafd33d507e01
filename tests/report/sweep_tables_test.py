"""A sweep's tables say what its entries hold; in Markdown each row stands on one line."""

from rim_jax.report import sweep_tables, tables
from rim_jax.results import timings
from tests.support_report import make_entry, make_latency, make_timed, read_setting


def test_times_have_a_row_for_each_setting_and_batch_beside_its_conditions():
  entries = [
      make_entry(make_timed(make_latency(2.0)), method='direct'),
      make_entry(make_timed(make_latency(7.0, 1.25), make_latency(20.0, 9.0, batch=8)),
                 make_timed(make_latency(9.0, 1.75)), method='pause'),
      read_setting(name='method=cot', factors={'method': 'cot'})]
  _, head, _, *rows, _, note = tables.to_markdown(sweep_tables.tabulate_times(entries))
  assert note.startswith(timings.TIMES_MEAN) and head.startswith(
      "|  | questions at once | to the answer's first token (ms, and x direct) | to its end (ms")
  conditions = (
      'a /chip/, 1 device(s), float32; 9 prompt tokens, in a trunk of 32; 1 readout(s) of 3 '
      'blocks; 2 tokens forced, 1 generated to the first of the answer and 4 to its end')
  assert rows == [
      f'| method=direct | 1 | 2.00 | 3.00 | 4.00 | 5.00 | {conditions} |',
      '| method=pause | 1 | 8.00 ± 1.00 (1.50 ± 0.25 x) | 9.00 ± 1.00 (2.00 ± 0.25 x) | '
      f'10.00 ± 1.00 (2.50 ± 0.25 x) | 11.00 ± 1.00 (3.00 ± 0.25 x) | {conditions} |',
      '| method=pause | 8 | 20.00 (9.00 x) | 21.00 (9.50 x) | 22.00 (10.00 x) | 23.00 (10.50 x) | '
      f'{conditions} |']
  assert {row.count('|') for row in (head, *rows)} == {8}
  assert not sweep_tables.tabulate_times(entries[2:]).rows
