print("y" * (3 << 20))
