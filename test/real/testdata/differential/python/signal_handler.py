import signal, os
signal.signal(signal.SIGUSR1, lambda n, f: print("handler", n, f.f_code.co_name))
os.kill(os.getpid(), signal.SIGUSR1)
print("after")
