try:
    {}["a"]
except KeyError:
    raise ValueError("b")
