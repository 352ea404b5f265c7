bytearray(1 << 60)
