"""Machines that are not there: what a step needs, and what a run would cost.

Never trains.
compile.py compiles the real step ahead of time; cost.py is arithmetic on shapes.
"""
