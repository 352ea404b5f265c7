from __future__ import annotations
def f(x: nothing) -> nowhere: pass
print(f.__annotations__)
