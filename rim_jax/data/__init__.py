"""Files and builders to records: question, steps, answer; and text to token ids.

Never knows a model, a layout or a method.
datasets.py loads what a config names, sources.py makes it; records.py says what a row is.
"""
