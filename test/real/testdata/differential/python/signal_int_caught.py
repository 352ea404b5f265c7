import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt: print("caught")
