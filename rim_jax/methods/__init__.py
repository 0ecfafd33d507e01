"""One module a method: what stands in the sequence, how much it counts, what is fed back.

Never trains, decodes or reads files.
A method is a layout and a weight; coconut.py also has a forward and a prefill of its own.
"""
