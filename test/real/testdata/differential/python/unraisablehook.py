import sys
sys.unraisablehook = lambda a: print("unraisable", a.exc_value)
class A:
    def __del__(self): 1/0
A()
