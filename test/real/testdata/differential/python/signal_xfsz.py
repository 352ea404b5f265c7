import os
os.kill(os.getpid(), 25); print("ignored")
