"""What a schema cannot say of the requests that schemathesis makes up.

They are put right where the document allows them and emberd refuses them, so
that everything else which the document allows can be asked to be accepted.
"""

import re
import uuid

import schemathesis


@schemathesis.hook
def map_case(context, case):
    # What a program wrote is rarely as long as a number that is made up.
    query = case.query or {}
    if case.operation.label.endswith("/output") and type(query.get("offset")) in (int, float) and query["offset"] >= 0:
        query["offset"] = 0
    # A key that is made up is often one that was used for another request.
    headers = case.headers or {}
    key = headers.get("Idempotency-Key")
    if isinstance(key, str) and re.fullmatch("[!-~]{1,128}", key):
        headers["Idempotency-Key"] = (key + uuid.uuid4().hex)[-128:]
    body = case.body
    if not isinstance(body, dict):
        return case
    # A schema takes 1.0 for an integer; emberd, like most that decode into
    # integers, does not.
    for name, value in body.items():
        if isinstance(value, float) and value.is_integer():
            body[name] = int(value)

    def among(name, least, most):
        return type(body.get(name)) is int and least <= body[name] <= most

    if case.operation.label == "POST /sandboxes":
        # Files are kept in the guest's memory.
        if not body.get("memory_mib"):
            disk = 256 - 64
        elif among("memory_mib", 128, 32768):
            disk = body["memory_mib"] - 64
        else:
            disk = 32704
        if among("disk_mib", disk, 32704):
            body["disk_mib"] = disk
        # What is gone after a second is gone as it should be, when a later
        # request wants it.
        for name in ("timeout_s", "idle_timeout_s"):
            if among(name, 1, 60):
                body[name] = 60
    # Each sandbox has an exec_timeout_s of its own, of a second at least.
    elif among("timeout_ms", 1000, 24 * 3600 * 1000):
        body["timeout_ms"] = 1000
    return case
