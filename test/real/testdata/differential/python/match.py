match {"a": [1, 2]}:
    case {"a": [x, *rest]}: print(x, rest)
