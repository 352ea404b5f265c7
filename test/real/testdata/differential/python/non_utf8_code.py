print("Ã©ÿ€")
