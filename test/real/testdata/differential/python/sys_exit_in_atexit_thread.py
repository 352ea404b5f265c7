import threading, sys, time
def f(): time.sleep(0.1); print("late", flush=True)
threading.Thread(target=f).start()
sys.exit(6)
