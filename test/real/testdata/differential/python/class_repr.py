class A: pass
def f(): pass
print(A, A.__module__, A.__qualname__, f.__module__, f.__code__.co_filename, repr(f)[:11])
import inspect
try: print(inspect.getsource(f))
except OSError as e: print(e)
