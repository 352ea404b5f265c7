import os
print(os.system("exit 3"), os.popen("echo popen").read())
