import os
print(os.getppid(), os.getpid() == os.getsid(0) == os.getpgid(0), os.getuid(), os.geteuid(), os.getgid(), os.getgroups(), os.nice(0))
try: print(os.tcgetpgrp(0))
except OSError as e: print(e)
