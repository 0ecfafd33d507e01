"""What was found, as values: judged answers, statistics, times.

Never loads JAX, and reads no file.
judge.py says when an answer is right; stats.py compares runs.
"""
