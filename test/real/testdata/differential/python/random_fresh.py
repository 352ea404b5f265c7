import random, os, uuid, secrets
print(len({random.random(), random.random()}), len(os.urandom(16)), uuid.uuid4().version, len(secrets.token_hex()))
