for i in range(200): print(i, "x" * 52000)
