import sys
print(list(vars(sys)))
print(sys.version_info, sys.implementation, sys.getrecursionlimit(), sys.getswitchinterval(), sys.gettrace(), sys.getprofile())
