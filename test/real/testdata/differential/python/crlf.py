print(1)
print("""a
b""".encode())
