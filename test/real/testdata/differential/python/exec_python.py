import os, sys
os.execv(sys.executable, sys.orig_argv[:1] + ["-c", "import sys; print(sys.argv, len(sys.modules))"])
