"""Many runs from one recipe: what is started, dropped, asked and concluded.

Never computes a gradient: each run is a command of its own.
driver.py starts what is left; halving.py says what goes on.
"""
