import locale, sys
print(locale.setlocale(locale.LC_ALL), locale.getlocale(), locale.getpreferredencoding(), sys.getfilesystemencoding(), sys.getfilesystemencodeerrors(), sys.getdefaultencoding(), locale.localeconv())
print(locale.setlocale(locale.LC_ALL, ""))
