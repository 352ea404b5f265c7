print(repr(input("prompt> "))); print(repr(input()))
input()
