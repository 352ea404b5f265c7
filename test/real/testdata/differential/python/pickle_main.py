import pickle
class A: pass
print(type(pickle.loads(pickle.dumps(A()))), pickle.dumps(A)[:40])
