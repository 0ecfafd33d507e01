"""How far something is, as a person is told."""

from rim_jax.runtime import status


def test_one_that_may_have_compiled_says_nothing_of_the_rest(monkeypatch):
  said, now = [], [0.0]
  monkeypatch.setattr(status.time, 'monotonic', lambda: now[0])
  tick = status.Ticker('timing', 22, 'rounds', said.append)
  for done in (1, 2):
    now[0] += 50
    tick(done)
  assert said == ['timing: 1 of 22 rounds', 'timing: 2 of 22 rounds, 16:40 left']
  tick = status.Ticker('evaluating', 200, 'questions', said.append)
  for done in (64, 128):  # the first batch
    now[0] += 50
    tick(done)
  assert said[2:] == ['evaluating: 64 of 200 questions',
                      'evaluating: 128 of 200 questions, 0:56 left']
