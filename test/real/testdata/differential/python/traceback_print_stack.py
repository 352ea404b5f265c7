import traceback
def f(): traceback.print_stack()
f()
print(traceback.format_stack())
