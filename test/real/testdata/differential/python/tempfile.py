import tempfile, os
d = tempfile.TemporaryDirectory(); print(os.path.isdir(d.name)); n = d.name; d.cleanup(); print(os.path.exists(n))
