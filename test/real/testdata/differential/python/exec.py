import os
os.execvp("echo", ["echo", "replaced"])
