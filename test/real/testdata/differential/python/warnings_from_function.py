import warnings
def f(): warnings.warn("in f", RuntimeWarning, stacklevel=2)
f(); f()
