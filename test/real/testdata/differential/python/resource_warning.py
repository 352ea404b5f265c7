import warnings
warnings.simplefilter("always")
open("/etc/hostname")
