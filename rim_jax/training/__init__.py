"""One update, and what survives it: state, checkpoints, metrics.

Never evaluates, and never draws a page.
step.py is the update; train.py, one floor up, is the loop.
"""
