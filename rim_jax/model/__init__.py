"""The network and where it lives: Batch to logits at the supervised slots.

Never knows data, methods or the optimizer.
transformer.py is the network; sharding.py the mesh and the one table of axes.
"""
