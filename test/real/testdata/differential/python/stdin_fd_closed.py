import os, sys
os.close(0)
print(sys.stdin.read())
