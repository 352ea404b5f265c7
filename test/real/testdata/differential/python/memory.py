x = bytearray(50 << 20); x[::4096] = b"x" * (len(x[::4096])); print(len(x))
