import sys
sys.stdout.buffer.write(b"\xff\x00raw")
print("text")
sys.stdout.buffer.write(b"after")
