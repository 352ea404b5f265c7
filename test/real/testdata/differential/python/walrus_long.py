print(sum(i for i in range(100000)), [y := 1, y ** 2], f"{3.14159:.2f}", 2 ** 100)
