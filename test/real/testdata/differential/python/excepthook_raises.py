import sys
def hook(*a): raise ValueError("hook")
sys.excepthook = hook
1/0
