import traceback, sys
try: 1/0
except ZeroDivisionError: print(traceback.format_exc()); traceback.print_exc()
print(sys.exc_info())
