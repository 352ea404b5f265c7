import multiprocessing as mp, os
def f(q): q.put(("child", mp.current_process().name, os.getppid() == parent))
parent = os.getpid(); q = mp.Queue(); p = mp.Process(target=f, args=(q,)); p.start(); print(q.get()); p.join(); print(p.exitcode)
