import sys
sys.stdout.write("a\0b"); sys.stderr.write("c\0d")
