import sys
def t(f, e, a): print(e, f.f_code.co_name); return t
def g(): pass
sys.settrace(t); g(); sys.settrace(None)
