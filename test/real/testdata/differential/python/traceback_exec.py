exec(compile("def f():\n  raise KeyError('k')\nf()", "named.py", "exec"))
