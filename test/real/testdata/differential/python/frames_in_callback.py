import sys
class A:
    def __del__(self): print(sys._getframe(1).f_code.co_name, sys._getframe(1).f_back)
a = A(); del a
