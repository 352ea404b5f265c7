import sys, io
print("to the first")
sys.stdout = io.StringIO()
print("to nobody")
