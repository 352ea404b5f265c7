import sys
sys.excepthook = lambda *a: print("hook", a[0].__name__, a[1], a[2].tb_lineno)
1/0
