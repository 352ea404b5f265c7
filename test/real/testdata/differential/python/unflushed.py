import sys
sys.stdout.write("no newline and no flush")
