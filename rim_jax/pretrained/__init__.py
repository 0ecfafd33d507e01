"""Other people's weights in and out: Hugging Face directories and PEFT adapters.

Never trains.
families.py reads a config.json; weights.py loads arrays; export.py writes them.
"""
