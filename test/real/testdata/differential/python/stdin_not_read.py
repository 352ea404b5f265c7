print("ignores its input")
