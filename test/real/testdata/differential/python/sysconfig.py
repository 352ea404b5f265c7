import sysconfig
print(sysconfig.get_paths(), sysconfig.get_platform())
