def f(n):
    try: return f(n + 1)
    except RecursionError: return n
print(f(0))
import sys
sys.setrecursionlimit(5000); print(f(0))
