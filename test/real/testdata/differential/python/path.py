import sys
print(sys.path, sys.path_hooks, sys.meta_path, sorted(sys.path_importer_cache))
print(sys.prefix, sys.exec_prefix, sys.base_prefix, sys.executable, sys._base_executable, sys.platlibdir)
