import threading
out = []
ts = [threading.Thread(target=out.append, args=(i,)) for i in range(20)]
[t.start() for t in ts]; [t.join() for t in ts]
print(sorted(out), threading.main_thread(). name, threading.current_thread() is threading.main_thread(), threading.active_count(), threading.get_ident() == threading.main_thread().ident, threading.get_native_id() == __import__("os").getpid())
