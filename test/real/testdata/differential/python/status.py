import re
for l in open("/proc/self/status"):
    if l.startswith(("Name", "Umask", "PPid", "Uid", "Gid", "Threads", "Cap", "NoNewPrivs", "Seccomp", "TracerPid")): print(l, end="")
print(open("/proc/self/comm").read(), open("/proc/self/oom_score_adj").read(), open("/proc/self/limits").read())
