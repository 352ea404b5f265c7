import sys
for s in sys.stdin, sys.stdout, sys.stderr:
    print(s, s.buffer, s.buffer.raw, s.line_buffering, s.write_through, s.errors, s.encoding, s.newlines, s.isatty(), s.seekable(), s.fileno(), s.name, s.mode)
print(sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__)
