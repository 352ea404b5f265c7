import gc
x = [object()]
print(len(gc.get_referrers(x[0])), gc.is_tracked(x))
