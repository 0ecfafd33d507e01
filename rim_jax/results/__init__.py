"""What was found, as values: judged answers, statistics, times.

Never loads JAX, and reads no file.
values.py has the types of results, and their JSON; judge.py says when an answer is right.
"""
