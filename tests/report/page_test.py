"""Blocks are shown as they are, and an empty section says so."""

from rim_jax.report import page, tables
from rim_jax.results.values import EvalResult, Prediction


def test_thoughts_and_the_question_alone_have_no_block():
  def mark(**result):
    return page.mark_answers(Prediction(
        question='', answer='', correct=True, block_predictions=['7'], block_correct=[True]),
                             EvalResult(final_acc=1.0, block_acc=[1.0], **result)).text
  assert mark(num_blocks=1) == '1: ✓ 7'
  assert mark(num_blocks=1, num_thoughts=3) == mark(num_blocks=0) == '✓ 7'
  old = Prediction(question='', answer='', correct=False)
  assert page.mark_answers(old, EvalResult(final_acc=0.0, block_acc=[0.0])).text == '✗ '


def show(*blocks) -> str:
  """The HTML of some blocks."""
  return page.render_page('a page', blocks).partition('</h1>')[2].partition('</body>')[0].strip()


def test_a_section_without_blocks_says_so_or_how_to_get_some():
  assert show(page.section('a', [])) == '<h3>a</h3><p class="none">no data</p>'
  assert show(page.section('a', [tables.table([], [])], 'ask <it>')) == (
      '<h3>a</h3><p class="none">ask &lt;it&gt;</p>')
  assert show(page.section('a', [page.paragraph('b')], 'ask')) == '<h3>a</h3><p>b</p>'


def test_blocks_that_hold_nothing_are_none():
  assert page.items([]) == page.figures([None]) == page.optional(
      'a', [tables.table(['a'], [])]) == []


def test_text_is_never_markup():
  shown = show(page.Heading('<h>'), page.paragraph('<p>&', small=True), *page.items(['<li>']),
               *page.optional('<d>', [page.paragraph('<x>')], folded=True))
  for text in ('<h>', '<p>&', '<li>', '<d>', '<x>'):
    assert text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;') in shown
