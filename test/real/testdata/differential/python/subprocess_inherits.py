import subprocess, sys
print("parent", flush=True)
subprocess.run("cat; echo child; echo err >&2; exit 3", shell=True)
