import os
os.kill(os.getpid(), 13); print("ignored")
