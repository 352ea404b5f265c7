"""A docstring."""
print(__doc__)
