import sys
print(sys.argv, len(sys.orig_argv), sys.orig_argv[:2], sys.orig_argv[2][:20])
