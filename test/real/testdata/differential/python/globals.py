print(list(globals())); print(globals() is locals())
x: int = 1
print(__annotations__)
