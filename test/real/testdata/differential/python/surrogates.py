import sys
print(repr("\ud800")); sys.stdout.write("\udcff\n"); print("\ud800")
