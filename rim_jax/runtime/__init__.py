"""The machine under a run: hosts, files, devices, compiled programs as text.

Never knows a model, a method or a result.
hosts.py joins processes; storage.py keeps files whole.
"""
