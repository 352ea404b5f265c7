import os, io, codecs, site, abc, stat, posixpath
for m in os, io, codecs, site, abc, stat, posixpath: print(m, m.__spec__, m.__loader__, list(vars(m)))
