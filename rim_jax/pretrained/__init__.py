"""Other people's weights in and out: Hugging Face directories and PEFT adapters.

Never trains.
families.py reads a config.json; tensors.py names tensors; weights.py loads them, export.py writes.
"""
