"""Files and builders to records: question, steps, answer; and text to token ids.

Never knows a model, a layout or a method.
datasets.py loads what a config names; records.py says what a row is, formats.py reads files.
"""
