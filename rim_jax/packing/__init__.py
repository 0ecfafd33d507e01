"""Records to packed rows: what stands where, in which order, and who sees whom.

Never knows a method by name, nor a model.
batch.py has the Batch and the one visibility rule; rows.py writes examples into rows.
"""
