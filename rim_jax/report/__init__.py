"""What people read: the terminal, a page, Markdown, figures.

Never loads JAX or a model; it reads what runs have left.
run_page.py shows one run; sweep_page.py many.
"""
