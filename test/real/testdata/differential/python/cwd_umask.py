import os, resource
print(os.getcwd(), oct(os.umask(0o22)))
print([(n, resource.getrlimit(getattr(resource, n))) for n in sorted(dir(resource)) if n.startswith("RLIMIT")])
