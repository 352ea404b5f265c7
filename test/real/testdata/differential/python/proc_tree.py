import os, subprocess
print(subprocess.run(["ps", "-o", "ppid=,stat=,args=", "-p", str(os.getpid())], capture_output=True, text=True).stdout.split()[:4])
