"""GSM8K's training problems with other numbers, every step recomputed and checked.

Never writes a problem that its own check has not recomputed.
variation.py makes the split; templates.py says which problems can vary.
"""
