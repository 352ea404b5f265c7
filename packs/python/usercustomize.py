"""Starts CPython ahead of the code that it will run.

The agent starts `python3 -c ''` with this directory on PYTHONPATH, and site
imports this module as the last step of the interpreter's start-up. Here the
start-up stops and the process becomes a zygote: for each request on descriptor
3 it forks a child, which waits for its code, puts it where the one from the
command line was, and lets the start-up go on. So the interpreter itself runs
the code, with no frame beneath it, and ends the process.

What this module brings in is taken back before the first fork, and it leaves
with the error that site would have had without it.
"""

import os
import sys


def warm_up():
    """Returns once in each child, when its code is in place."""
    socket, set_command, own_memory = prepare()
    control = socket.socket(fileno=3)
    while True:
        message, rights, _, _ = control.recvmsg(1, socket.CMSG_SPACE(4 * 4))
        if message != b"F":
            os._exit(0)
        files = memoryview(rights[0][2]).cast("i").tolist()
        try:
            pid = os.fork()
        except OSError:
            pid = -1  # the agent sees the child's socket close
        if pid == 0:
            break
        for file in files:
            os.close(file)
        if pid > 0:
            os.waitpid(pid, 0)
    try:
        if os.fork() != 0:
            os._exit(0)
        control.detach()
        become_child(files)
        own_memory()
        os.write(3, b"R%d\n" % os.getpid())
        set_command(receive_code())
        os.write(3, b"G")
        os.close(3)
    except BaseException:
        os._exit(1)


def become_child(files):
    """Leaves the zygote's session, and has no other descriptors than files."""
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(4, max(files) + 1)


def receive_code():
    """Returns the code, or ends the process where nobody sends any."""

    def read(size):
        parts = []
        while size > 0:
            part = os.read(3, size)
            if not part:
                os._exit(0)
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    return read(int.from_bytes(read(4), "big"))


def prepare():
    """Returns what the zygote and its children use, and takes back what it took
    to find it."""
    modules, importers = set(sys.modules), set(sys.path_importer_cache)
    import _socket
    import ctypes

    api = ctypes.pythonapi
    # Never freed, so that no child finds remains of ctypes among its garbage.
    kept = [ctypes]
    api.Py_IncRef(ctypes.py_object(kept))
    path = os.environ["PYTHONPATH"]
    set_command = command_setter(ctypes, api, kept, path)

    del os.environ["PYTHONPATH"]
    sys.path.remove(path)
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    for name in set(sys.path_importer_cache) - importers | {path}:
        sys.path_importer_cache.pop(name, None)
    api.PyGC_Collect()
    return _socket, set_command, memory_owner(ctypes, api)


def command_setter(ctypes, api, kept, path):
    """Returns a function that makes its argument the code that -c runs."""
    api._Py_GetConfig.restype = ctypes.c_void_p
    api._Py_GetConfigsAsDict.restype = ctypes.py_object
    assign = api._PyConfig_FromDict
    assign.argtypes = [ctypes.c_void_p, ctypes.py_object]
    config = api._Py_GetConfig()
    fields = api._Py_GetConfigsAsDict()["config"]
    fields["pythonpath_env"] = None
    fields["module_search_paths"].remove(path)

    # What the kernel shows of a process: it takes the addresses from anybody who
    # is root, and keeps its own otherwise.
    prctl = api.prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
    set_mm, arg_start, arg_end, env_end = 35, 8, 9, 11
    with open("/proc/self/stat") as stat:
        env_start = int(stat.read().rpartition(")")[2].split()[47])
    with open("/proc/self/environ", "rb") as environ:
        prctl(set_mm, env_end, env_start + environ.read().index(b"PYTHONPATH="), 0, 0)

    def set_command(code):
        sys.orig_argv[-1] = text = os.fsdecode(code)
        fields["orig_argv"] = sys.orig_argv
        fields["run_command"] = text + "\n"
        assign(config, fields)
        shown = ctypes.create_string_buffer(b"\0".join(map(os.fsencode, sys.orig_argv)))
        kept.append(shown)
        start = ctypes.addressof(shown)
        prctl(set_mm, arg_start, start, 0, 0)
        prctl(set_mm, arg_end, start + len(shown), 0, 0)

    return set_command


def memory_owner(ctypes, api):
    """Returns a function that copies the memory a child shares with the zygote.

    Otherwise each page would be copied when the code, or the interpreter's end,
    first writes to it: hundreds of faults, which would take most of the time of
    a small program.
    """
    madvise = api.madvise
    madvise.argtypes = [ctypes.c_ulong, ctypes.c_ulong, ctypes.c_int]
    populate_read, populate_write = 22, 23
    page = os.sysconf("SC_PAGESIZE")
    shared, own = [], []
    with open("/proc/self/maps") as maps, open("/proc/self/pagemap", "rb") as pagemap:
        for line in maps:
            area, access, _, _, _, *file = line.split(maxsplit=5)
            start, end = (int(address, 16) for address in area.split("-"))
            if not access.startswith("rw"):
                if file and file[0].startswith("/"):
                    shared.append((start, end - start))
                continue
            # Pages that are not there would only take memory.
            pagemap.seek(start // page * 8)
            for number, entry in enumerate(memoryview(pagemap.read((end - start) // page * 8)).cast("Q")):
                if not entry >> 63:
                    continue
                at = start + number * page
                if own and sum(own[-1]) == at:
                    own[-1] = own[-1][0], own[-1][1] + page
                else:
                    own.append((at, page))

    def own_memory():
        for area in shared:
            madvise(*area, populate_read)
        for area in own:
            madvise(*area, populate_write)

    return own_memory


warm_up()
# A function and the namespace it was made in are a cycle.
del become_child, command_setter, memory_owner, prepare, receive_code, warm_up
raise ImportError(name=__name__)
