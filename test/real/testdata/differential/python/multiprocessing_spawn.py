import multiprocessing as mp
p = mp.get_context("spawn").Process(target=print, args=("spawned",)); p.start(); p.join(); print(p.exitcode)
