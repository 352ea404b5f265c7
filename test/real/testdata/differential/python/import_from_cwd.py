import os
open("m_own.py", "w").write("print('imported', __name__, __file__)")
import m_own
os.remove("m_own.py"); import shutil; shutil.rmtree("__pycache__", ignore_errors=True)
