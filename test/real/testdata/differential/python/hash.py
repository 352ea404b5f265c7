print(hash(1), hash(1.5), hash(None) == hash(None), hash("a") == hash("a"), hash(()))
