import sys
print(repr(sys.stdin.readline(2)), repr(sys.stdin.readline()), sys.stdin.readlines())
