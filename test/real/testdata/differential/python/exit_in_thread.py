import threading, sys
t = threading.Thread(target=lambda: sys.exit(9)); t.start(); t.join(); print("main goes on")
