import os, time
pid = os.fork()
if pid == 0:
    if os.fork() == 0:
        time.sleep(0.2); print("orphan of", os.getppid())
    os._exit(0)
os.waitpid(pid, 0); time.sleep(0.5)
