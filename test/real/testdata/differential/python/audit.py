import sys
seen = []
sys.addaudithook(lambda e, a: seen.append(e))
compile("1", "x", "eval"); print(seen[:1])
