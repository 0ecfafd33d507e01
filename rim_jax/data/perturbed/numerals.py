"""Numbers in a word problem: where they stand, what they mean, and how a changed one is written.

Owns the reading of a question. What it cannot read with certainty (a time of day, a ratio, a
date) makes the whole question unreadable, with the reason: a number read wrongly would
make a wrong problem, and one not read at all might be the one that matters.
"""

import dataclasses
from fractions import Fraction
import re

_ONES = ('zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen '
         'fifteen sixteen seventeen eighteen nineteen').split()
_TENS = '_ _ twenty thirty forty fifty sixty seventy eighty ninety'.split()
WORDS = {word: i for i, word in enumerate(_ONES)} | {
    word: 10 * i for i, word in enumerate(_TENS) if i > 1} | {
        f'{ten}-{_ONES[i]}': 10 * t + i
        for t, ten in enumerate(_TENS) if t > 1 for i in range(1, 10)}
_NUMBER_WORD = '|'.join(sorted(WORDS, key=len, reverse=True))

# Words whose number never changes, and the operands that they may stand for in a step.
_F = Fraction
FIXED_WORDS = {
    'twice': (_F(2),), 'double': (_F(2),), 'doubles': (_F(2),), 'doubled': (_F(2),),
    'doubling': (_F(2),), 'thrice': (_F(3),), 'triple': (_F(3),), 'tripled': (_F(3),),
    'triples': (_F(3),), 'quadruple': (_F(4),), 'quadrupled': (_F(4),), 'half': (_F(2), _F(1, 2)),
    'halves': (_F(2), _F(1, 2)), 'halved': (_F(2), _F(1, 2)), 'dozen': (_F(12),),
    'dozens': (_F(12),), 'pair': (_F(2),), 'pairs': (_F(2),), 'couple': (_F(2),), 'once': (_F(1),),
    'both': (_F(2),)}
# Of these, a step need not use: the words are units, pronouns or emphasis as often as numbers.
OPTIONAL_WORDS = {'dozen', 'dozens', 'pair', 'pairs', 'couple', 'once', 'both', 'one', '1'}
_DENOMINATORS = {'third': 3, 'quarter': 4, 'fourth': 4, 'fifth': 5, 'sixth': 6, 'seventh': 7,
                 'eighth': 8, 'ninth': 9, 'tenth': 10}

_MONTHS = ('January|February|March|April|May|June|July|August|September|October|November|'
           'December')
# A question in which one of these is found is not read. Reason -> pattern (case ignored).
UNREADABLE = {
    'a time of day or a date': (
        rf"\d:\d\d|\b\d+ ?[ap]\.?m\b|o.clock|\bnoon\b|midnight|\b(?:{_MONTHS}) \d|"
        rf"\b\d+ (?:of )?(?:{_MONTHS})\b|(?<![$\d,])\b(?:1[89]|20)\d\d\b(?!,)(?!\.\d)|\bcentury|"
        r'\bdecade|leap year|birthday|\bborn\b'),
    'a ratio or a range': (
        r'\d ?: ?\d|\bratio|\d ?[-–—~] ?\$?\d|\bbetween \$?\d|\bfrom \$?\d+ to\b|'
        r'\d (?:out of|in) (?:every )?\d|\b(?:out of|for|in) every\b|\bproportion'),
    'a scale word or a mixed number': (
        r'hundred|thousand|million|billion|\bscore of|\d \d+/\d|\d-\d+/\d|[½¼¾⅓⅔⅛]|'
        r'\band (?:a|one)[ -](?:half|third|quarter|fourth)|\bfold\b|\d(?:k|K|M|B)\b|\d ?\*'),
    'an ordinal number': r"\d(?:st|nd|rd|th)s?\b|#|\bno\. ?\d|\bdigits?\b|numbered|\bnumbers? \d",
    'a measure of two parts': (
        r"\d['’\"]|\d (?:feet|foot|ft|hours?|minutes?|pounds?|lbs|dollars|yards?|years?|weeks?) "
        r'(?:and )?\d+ ?(?:inches|in|minutes?|seconds?|ounces|oz|cents|feet|months?|days?)\b'),
    'a threshold, a choice or rounding': (
        r'\bat least\b|\bat most\b|minimum|maximum|no more than|\blimit|exceed|\bround(?:ed|s)?\b|'
        r'nearest|whole number|\bup to\b|cheap|\bbest\b|fewest|\bonly if\b|\bunless\b|otherwise|'
        r'\bor (?:more|less|fewer)\b|\bevery other\b|\balternat|\bclosest|approximate|estimate|'
        r'overtime|\bbeyond\b|\bafter the (?:first|initial)|\b(?:over|above|under) \$?\d|'
        r'enough (?:to|money|for)|can(?:not|.t)? afford|\bwhichever|\bfor free\b|get one|'
        r'\bfree\b|\bbulk\b|\bbonus'),
    'a comparison that may mean two things': (
        r'times (?:fewer|less|smaller|shorter|slower|lower|lighter|younger)|/\d times|'
        r'\bhalf (?:more|again)'),
    'chance, cards or properties of numbers': (
        r'probab|\bchance|\bodds\b|\bdice\b|\bdie\b|\bdeck\b|\bcards?\b|\bprime|consecutive|'
        r'divisible|multiples? of|\bodd\b|\beven (?:number|integer|page)|alphabet|\bsquared?\b|'
        r'\bcubed?\b|remainder when|\bmedian|\bmode\b|\bdiagonal|\btriang|\bangle|\bhexagon|'
        r'\bpentagon|\bcircle|\bpolygon|\barea\b|perimeter|\bvolume'),
    'negative numbers or temperatures': (
        r'(?:^|[\s(])[-−]\$?\d|negative|degrees|\btemperature|\bdebt|\bowe|below (?:zero|sea)'),
}
_LABEL = re.compile(
    r'\b(?:grade|size|sizes|number|room|route|aisle|day|chapter|level|version|season|episode|page|'
    r'bus|floor|unit|lane|channel|week|year|month|hour|quarter|step|part|type|group|team|section|'
    r'game|round|stage|phase|age|aged|formula|highway|exit)'
    r's? $', re.I)
_UNITS = 'kg|g|ml|m|cm|km|oz|lbs|lb|mm|hr|hrs|ft|mph|gb|mb|l'
_NUMERAL = re.compile(rf'''
    (?P<fraction>\d+/\d+(?![\d/]))
  | (?P<money>[$€£]\s?(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?)
  | (?P<number>(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?)(?P<percent>\s?%|[ ]percent\b)?
  | \b(?P<parts>(?:(?:{_NUMBER_WORD})[ -])?(?:an?[ ]|one[ ])?(?:{'|'.join(_DENOMINATORS)})s?)\b
  | \b(?P<fixed>{'|'.join(sorted(FIXED_WORDS, key=len, reverse=True))})\b
  | \b(?P<word>{_NUMBER_WORD})\b(?P<word_percent>[ ]percent\b)?
''', re.I | re.X)


class Refused(Exception):
  """Why a row is no template."""


@dataclasses.dataclass(frozen=True)
class Numeral:
  """A number in a question: its span, its value as written, and the operands it may stand for.

  `kind`: count, money, cents, percent, or fixed (one that never changes).
  """
  start: int
  end: int
  text: str
  value: Fraction
  kind: str
  operands: tuple[Fraction, ...]
  after: str  # the words after it, up to 40 characters, lower-case

  @property
  def optional(self):
    """Whether a step need not use it; 'one more' is a relation, not a pronoun."""
    return self.text.lower() in OPTIONAL_WORDS and not re.match(
        ' (?:more|less|fewer|extra|additional|another|of every|out)', self.after)


def read_numerals(question: str) -> list[Numeral]:
  """Every number of a question, in order.

  Raises: Refused where something in it might be a number and is not surely read.
  """
  for reason, pattern in UNREADABLE.items():
    if re.search(pattern, question, re.I):
      raise Refused(reason)
  return list(filter(None, (_read(match, question) for match in _NUMERAL.finditer(question))))


def _read(match, question):
  start, end = match.span()
  text = match.group()
  if len(text) > 400:  # Python reads no number of more than 4,300 digits
    raise Refused('a number longer than any')
  before, after = question[max(0, start - 40):start], question[end:end + 40].lower()

  def make(value, kind, operands, end=end):
    return Numeral(start, end, question[start:end], value, kind, operands,
                   question[end:end + 40].lower())
  if match['parts']:
    return _read_parts(match['parts'].lower(), before, after, make)
  if match['fixed']:
    operands = FIXED_WORDS[text.lower()]
    return make(operands[0], 'fixed', operands)
  if match['word']:
    value = Fraction(WORDS[match['word'].lower()])
    if match['word_percent']:
      return make(value, 'percent', (value, value / 100), start + len(match['word']))
    return make(value, 'fixed' if value <= 2 else 'count', (value,))
  if match['fraction']:
    above, below = map(int, text.split('/'))
    if not 0 < above < below:
      raise Refused('a bad fraction')
    return make(Fraction(above, below), 'fixed',
                (Fraction(above, below), Fraction(above), Fraction(below)))
  if before[-1:].isalnum() or before[-1:] in ('/', '.') or (
      after[:1].isalpha() and not re.match(rf'(?:{_UNITS})\b', after)) or after[:1] in ('/', '+'):
    raise Refused('a number inside a word')
  if _LABEL.search(before) or re.search(r'[A-Z][\w’\']*[a-z]-$', before):
    raise Refused('a number that is a name')
  value = Fraction((match['number'] or match['money'].lstrip('$€£ ')).replace(',', ''))
  if match['percent']:
    return make(value, 'percent', (value, value / 100), match.end('number'))
  if not match['money'] and re.match(r'[- ]cents?\b|¢', after):
    return make(value, 'cents', (value, value / 100))
  is_money = match['money'] or re.match(r'[- ](?:dollars?|bucks?|euros?)\b', after)
  return make(value, 'money' if is_money else 'count', (value,))


def _read_parts(text, before, after, make):
  """'a third', 'three-quarters', '2 fifths' as fractions; an ordinal or a coin is no number."""
  words = re.split('[ -]', text)
  name = words[-1].removesuffix('s')
  below = _DENOMINATORS[name]
  if text == 'quarters':
    return None  # coins, or a game's: templates.CONSTANTS has their worth
  above = WORDS.get(words[0], 1)
  if (text == 'quarter' or re.search(r'\d[ -]$', before) or above >= below
      or (len(words) == 1 and text.endswith('s'))):
    raise Refused('a bad fraction')
  if len(words) == 1:
    return None  # 'the third day'
  if above == 1 and not re.match(r' (?:of|the|as|more|less|fewer|that|are|is|were|full|cup|mile|'
                                 r'pound|an? )|[,.?]|-', after):
    if words[0] == 'one' or name == 'quarter':
      raise Refused('a bad fraction')
    return None  # 'a third friend'
  value = Fraction(above, below)
  return make(value, 'fixed', (value, Fraction(above), Fraction(below)))


def write_numeral(numeral: Numeral, value: Fraction, commas: bool) -> str:
  """A numeral with another value, in the form of the old one."""
  text = numeral.text
  if text[0].isalpha():
    ten, one = divmod(int(value), 10)
    word = _ONES[int(value)] if value < 20 else _TENS[ten] + (f'-{_ONES[one]}' if one else '')
    return word.capitalize() if text[0].isupper() else word
  prefix = re.match(r'[$€£]?\s?', text).group()
  _, point, decimals = text.partition('.')
  number = f'{value.numerator // value.denominator:{"," if commas else ""}}'
  if point:
    scaled = value * 10**len(decimals)
    number += f'.{int(scaled) % 10**len(decimals):0{len(decimals)}d}'
    if text[len(prefix)] == '.':
      number = number.lstrip('0')
  return prefix + number


def fit_article(before: str, number: str) -> str:
  """The text before a number, with its 'a' or 'an' made to fit: an 8, an 11, an 18, an eight."""
  match = re.search(r'\b([Aa])n?( [$]?)$', before)
  if not match:
    return before
  spoken = number.lstrip('$')
  whole = spoken.partition('.')[0]
  vowel = (re.match(r'8|eight|eleven', spoken, re.I) or whole in ('11', '18')
           or re.match(r'1[18],?\d{3}$', whole))
  return before[:match.start()] + match[1] + ('n' if vowel else '') + match[2]
