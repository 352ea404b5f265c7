import sys
print([m for m in sys.modules if "custom" in m])
import usercustomize
