import subprocess, sys
print(subprocess.run([sys.executable, "-c", "import sys; print(sys.path, sys.flags, list(sys.modules)); print(input())"], input="in\n", capture_output=True, text=True))
print(subprocess.getoutput("ls -l /proc/self/fd | wc -l"), subprocess.call(["false"]))
