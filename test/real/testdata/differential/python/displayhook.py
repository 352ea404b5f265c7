import sys
exec(compile("1+1", "<x>", "single"))
