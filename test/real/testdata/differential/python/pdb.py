import pdb
pdb.run("x = 1")
