import faulthandler, os, signal, re
faulthandler.enable()
os.kill(os.getpid(), signal.SIGABRT)
