import multiprocessing as mp
p = mp.get_context("forkserver").Process(target=print, args=("by the fork server",)); p.start(); p.join(); print(p.exitcode)
