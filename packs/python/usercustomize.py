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
    control, room, set_command, memory = prepare()
    if memory.rehearse(control, set_command):
        return
    while True:
        message, rights, _, _ = control.recvmsg(1, room)
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
        memory.own()
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
    import atexit
    import ctypes
    import gc

    api = ctypes.pythonapi
    # Never freed, so that no child finds remains of this among its garbage.
    kept = [ctypes, atexit]
    api.Py_IncRef(ctypes.py_object(kept))
    path = os.environ["PYTHONPATH"]
    set_command = command_setter(ctypes, api, kept, path)

    del os.environ["PYTHONPATH"]
    sys.path.remove(path)
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    for name in set(sys.path_importer_cache) - importers | {path}:
        sys.path_importer_cache.pop(name, None)
    control, room = _socket.socket(fileno=3), _socket.CMSG_SPACE(4 * 4)
    control.fileno()  # its type is made ready by the first use
    memory = Memory(ctypes, api)
    kept.append(memory)
    atexit.register(quick_end(gc, kept))
    return control, room, set_command, memory


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
        # With the zero byte that each bytes object ends with.
        shown = b"\0".join(map(os.fsencode, sys.orig_argv))
        kept.append(shown)
        start = id(shown) + bytes.__basicsize__ - 1
        prctl(set_mm, arg_start, start, 0, 0)
        prctl(set_mm, arg_end, start + len(shown) + 1, 0, 0)

    return set_command


class Memory:
    """What a child needs of the memory that it shares with the zygote.

    A page would be copied when the code, or the interpreter's end, first writes
    to it, and one of a library be looked up when it is first used: hundreds of
    faults, which would take most of the time of a small program. Which pages
    those are is learned from a child that runs one.
    """

    def __init__(self, ctypes, api):
        self.madvise, self.ptrace = api.madvise, api.ptrace
        self.madvise.argtypes = [ctypes.c_ulong, ctypes.c_ulong, ctypes.c_int]
        self.ptrace.argtypes = [ctypes.c_ulong] * 4
        self.areas = []

    def own(self):
        """Has the pages ready in this process."""
        for start, size, how in self.areas:
            self.madvise(start, size, how)

    def rehearse(self, control, set_command):
        """Learns what a program uses. Returns True in the child that is to be
        that program."""
        watched, watching = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.read(watched, 1)
            control.detach()
            become_child([os.open("/dev/null", os.O_RDWR)] * 4)
            os.close(3)
            set_command(b"print()")
            return True
        seize, options, cont = 0x4206, 0x100040, 7  # PTRACE_O_EXITKILL, PTRACE_O_TRACEEXIT
        self.ptrace(seize, pid, 0, options)
        os.write(watching, b"W")
        os.close(watching)
        os.close(watched)
        # It stops once more when nothing but its memory is left.
        status = os.waitpid(pid, 0)[1]
        if os.WIFSTOPPED(status):
            self.areas = list(areas_of(pid))
            self.ptrace(cont, pid, 0, 0)
            os.waitpid(pid, 0)
        return False


def areas_of(pid):
    """Yields the areas of a process that it has used, as arguments of madvise."""
    populate_read, populate_write = 22, 23
    present, alone = 1 << 63, 1 << 56
    size = os.sysconf("SC_PAGESIZE")
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/pagemap", "rb") as pagemap:
        for line in maps:
            area, access, _, _, _, *file = line.split(maxsplit=5)
            start, end = (int(address, 16) for address in area.split("-"))
            if access.startswith("rw"):
                wanted, how = present | alone, populate_write
            elif file and file[0].startswith("/"):
                wanted, how = present, populate_read
            else:
                continue
            pagemap.seek(start // size * 8)
            pages = memoryview(pagemap.read((end - start) // size * 8)).cast("Q")
            first = None
            for number, page in enumerate((*pages, 0)):
                used = page & wanted == wanted
                if used and first is None:
                    first = number
                if first is not None and not used:
                    yield start + first * size, (number - first) * size, how
                    first = None


def quick_end(gc, kept):
    """Returns what is called after everything else that is called at the end.

    An interpreter that ends looks through all its objects for garbage, several
    times, and most of them are those of its start-up. That is spared where it
    could do nothing that anybody sees: where the code left only objects of whose
    end nobody ever hears.
    """
    silent = {dict, list, tuple, set, frozenset, type(gc), type(len), type(quick_end), type((lambda: gc).__closure__[0])}

    def collections():
        # After one of these there would be older objects of the code's, too.
        return [generation["collections"] for generation in gc.get_stats()[1:]]

    def end():
        if collections() == began and silent.issuperset(map(type, gc.get_objects(0) + gc.get_objects(1))):
            gc.freeze()
            kept.append(modules.copy())
            modules.clear()

    modules = sys.modules
    gc.collect()
    began = collections()
    return end


warm_up()
# A function and the namespace it was made in are a cycle.
del Memory, areas_of, become_child, command_setter, prepare, quick_end, receive_code, warm_up
raise ImportError(name=__name__)
