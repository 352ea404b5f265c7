import os, subprocess
os.makedirs("/root/.local/lib/python3.11/site-packages", exist_ok=True)
p = "/root/.local/lib/python3.11/site-packages/usercustomize.py"
open(p, "w").write("print('customized')\n")
print(subprocess.run(["python3", "-c", "print(1)"], capture_output=True))
os.remove(p)
