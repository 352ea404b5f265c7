import warnings
warnings.warn("a user warning")
warnings.warn("deprecated", DeprecationWarning)
warnings.warn("above", stacklevel=2)
warnings.warn("far above", stacklevel=9)
print(warnings.filters)
