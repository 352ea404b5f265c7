import threading, time
e = threading.Event(); threading.Timer(0.1, e.set).start(); print(e.wait(5))
