import sys, os
print("a"); os.write(1, b"b\n"); print("c", flush=True); os.write(1, b"d\n")
sys.stderr.write("partial"); os.write(2, b"|")
