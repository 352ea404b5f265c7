import sys, inspect
print(len(inspect.stack()), inspect.stack()[0].function, sys._getframe().f_back, sys._getframe().f_code.co_filename)
try: sys._getframe(1)
except ValueError as e: print(e)
print(len(sys._current_frames()), len(sys._current_exceptions()))
