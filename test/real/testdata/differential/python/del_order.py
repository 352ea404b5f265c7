class A:
    def __init__(self, n): self.n = n
    def __del__(self): print("del", self.n)
import os, sys, builtins
x = A("main"); os.x = A("os"); sys.x = A("sys"); builtins.x = A("builtins"); os.walk.x = A("function"); sys.path.append(A("path"))
