import ctypes, gc
print(ctypes.CDLL(None).getpid() == __import__("os").getpid(), ctypes.pythonapi.Py_IsInitialized(), ctypes.sizeof(ctypes.c_void_p))
class P(ctypes.Structure): _fields_ = [("x", ctypes.c_int), ("p", ctypes.POINTER(ctypes.c_int))]
print(P(1).x, ctypes.cast(b"abc", ctypes.c_char_p).value, ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda n: n + 1)(41), ctypes._pointer_type_cache.keys())
