import atexit
def f(): raise ValueError("at exit")
atexit.register(print, "still"); atexit.register(f)
