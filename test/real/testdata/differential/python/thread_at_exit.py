import threading, atexit
def f(): print("at exit", threading.active_count())
atexit.register(f)
