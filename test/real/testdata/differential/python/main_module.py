import __main__, sys
print(__name__, sys.modules["__main__"] is __main__)
print(sorted((k, repr(v)) for k, v in vars(__main__).items() if k not in ("sys", "__main__")))
print(__builtins__, __spec__, __loader__, __doc__, __package__, __annotations__)
print("__file__" in globals(), "__cached__" in globals())
