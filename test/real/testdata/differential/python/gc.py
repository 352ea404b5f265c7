import gc
print(gc.collect(), gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.garbage, gc.get_freeze_count(), gc.callbacks)
class A: pass
a = A(); a.a = a; del a
print(gc.collect())
