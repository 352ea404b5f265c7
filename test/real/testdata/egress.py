"""What a program in a sandbox tries of the network.

TRIALS is a list of [operation, arguments]; what is printed is a list with the
outcome of each, as JSON. An outcome begins with what happened: "ok" and what was
answered, or a word for how it failed.
"""

import errno
import http.client
import json
import os
import random
import select
import socket
import ssl
import struct
import time

PATIENCE = 20
CA = "/tmp/ca.pem"
TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "HTTPS": 65, "ANY": 255}
CODES = {0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}


def gateway():
    for line in open("/etc/resolv.conf"):
        if line.startswith("nameserver"):
            return line.split()[1]
    raise OSError("no name server")


def connect(host, port):
    """Connects to an address, or to the first of a name's."""
    return socket.create_connection((host, port), timeout=PATIENCE)


# Names.


def dns(name, type="A", over="udp", server=None, port=53, flags=0x0100, count=1, tail="", klass=1):
    if isinstance(name, str):
        labels = [label.encode("latin-1") for label in name.rstrip(".").split(".")]
    wire = b"".join(bytes([len(label)]) + label for label in labels if label) + b"\0"
    kind = TYPES[type] if isinstance(type, str) else type
    ident = random.randrange(1 << 16)
    question = wire + struct.pack(">HH", kind, klass)
    query = struct.pack(">HHHHHH", ident, flags, count, 0, 0, 0) + question * count + bytes.fromhex(tail)
    server = server or gateway()
    if over == "udp":
        with socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(PATIENCE)
            s.connect((server, port))
            s.send(query)
            return answer(s.recv(65535), ident)
    with connect(server, port) as s:
        if over == "tls":
            context = ssl.create_default_context(cafile=CA)
            s = context.wrap_socket(s, server_hostname=server)
        s.sendall(struct.pack(">H", len(query)) + query)
        reply = s.makefile("rb")
        size = reply.read(2)
        if len(size) < 2:
            return "closed"
        return answer(reply.read(struct.unpack(">H", size)[0]), ident)


def answer(message, ident):
    """Says what a reply says: its code, and its addresses and their lifetimes."""
    got, flags, questions, answers, _, _ = struct.unpack(">HHHHHH", message[:12])
    if got != ident:
        return "wrong id"
    at, found = 12, []
    for _ in range(questions):
        at = skip(message, at) + 4
    for _ in range(answers):
        at = skip(message, at)
        kind, _, ttl, size = struct.unpack(">HHIH", message[at : at + 10])
        data = message[at + 10 : at + 10 + size]
        at += 10 + size
        if kind == 1:
            found.append(socket.inet_ntop(socket.AF_INET, data))
        elif kind == 28:
            found.append(socket.inet_ntop(socket.AF_INET6, data))
        else:
            found.append("type%d" % kind)
    cut = " cut" if flags & 0x0200 else ""
    return "ok %s%s %s" % (CODES.get(flags & 15, flags & 15), cut, ",".join(sorted(found)))


def skip(message, at):
    while message[at]:
        if message[at] & 0xC0:
            return at + 2
        at += message[at] + 1
    return at + 1


def lookup(name):
    """Asks as every program does."""
    return "ok " + ",".join(sorted({a[4][0] for a in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)}))


# Connections.


def tcp(host, port, say=None):
    with connect(host, port) as s:
        f = s.makefile("rb")
        hello = f.readline()
        if say:
            s.sendall(say.encode() + b"\n")
            hello += f.readline()
        return "ok " + hello.decode().strip() if hello else "closed"


def udp(host, port, size=20, count=1):
    """Sends datagrams and wants each of them back."""
    address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(address[0], socket.SOCK_DGRAM) as s:
        s.settimeout(PATIENCE)
        s.connect(address[4])
        for n in range(count):
            sent = bytes([n]) * size
            s.send(sent)
            if s.recv(65535) != sent:
                return "changed"
    return "ok %d" % count


def bare(address, port=0, protocol="udp", number=None):
    """Sends one packet and waits for nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind, data = (socket.SOCK_DGRAM, b"anybody there?") if number is None else (socket.SOCK_RAW, b"\x08\0\xf7\xff\0\0\0\0" * 4)
    with socket.socket(family, kind, number or 0) as s:
        if number is None:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        s.sendto(data, (address, port))
        time.sleep(0.05)
    return "sent"


def ping(address):
    family, number, kind = (socket.AF_INET6, 58, 128) if ":" in address else (socket.AF_INET, 1, 8)
    with socket.socket(family, socket.SOCK_RAW, number) as s:
        packet = struct.pack(">BBHHH", kind, 0, 0, 1, 1) + b"ping"
        total = sum(struct.unpack(">6H", packet))
        total = (total & 0xFFFF) + (total >> 16)
        s.sendto(packet[:2] + struct.pack(">H", ~total & 0xFFFF) + packet[4:], (address, 0))
        until = time.monotonic() + 3
        while (left := until - time.monotonic()) > 0 and select.select([s], [], [], left)[0]:
            reply, _ = s.recvfrom(2000)
            header = (reply[0] & 15) * 4 if family == socket.AF_INET else 0
            if reply[header] in (0, 129):
                return "ok pong"
            if reply[header] in (1, 3):
                return "unreachable"
    return "timeout"


def scan(address, first, last, kind="tcp"):
    """Says on which ports something answers, or takes what it is sent."""
    open_ports = []
    for port in range(first, last + 1):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as s:
            s.settimeout(PATIENCE)
            try:
                s.connect((address, port))
                if kind == "udp":
                    s.send(b"anybody there?")
                    s.settimeout(0.02)
                    s.recv(100)
                open_ports.append(port)
            except OSError:
                pass
    return "ok open %s" % open_ports


# TLS. OpenSSL says hello in memory, and what it says is then changed.


class Session:
    def __init__(self, host, port, sni, verify=True):
        context = ssl.create_default_context(cafile=CA)
        if not verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.socket = connect(host, port)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=sni)

    def shake(self, change=None):
        while True:
            try:
                self.tls.do_handshake()
                return self.flush()
            except ssl.SSLWantReadError:
                hello = self.outgoing.read()
                for part in change(hello) if change and hello else [hello]:
                    self.socket.sendall(part)
                    if change:
                        time.sleep(0.01)
                change = None
                self.fill()

    def flush(self):
        self.socket.sendall(self.outgoing.read())

    def fill(self):
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionAbortedError("closed")
        self.incoming.write(data)

    def ask(self, host, path="/page"):
        self.tls.write(b"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (path.encode(), host.encode()))
        self.flush()
        got = b""
        while b"\n" not in got.partition(b"\r\n\r\n")[2]:
            try:
                part = self.tls.read(65536)
                if not part:
                    break
                got += part
            except ssl.SSLWantReadError:
                self.fill()
        head, _, body = got.partition(b"\r\n\r\n")
        return "ok %s %s" % (head.split()[1].decode(), body.decode().strip())


def https(host, sni=None, ask=None, port=443, change=None, **how):
    """Gets a page. sni is who TLS is for (host, if not given; "" for nobody), ask
    who HTTP is."""
    sni = host if sni is None else sni
    session = Session(host, port, sni or None, verify=bool(sni) and change is None)
    try:
        session.shake(CHANGES[change](**how) if change else None)
        return session.ask(ask or sni or host)
    finally:
        session.socket.close()


def pieces(size):
    """Sends the hello in small segments."""
    return lambda hello: [hello[i : i + size] for i in range(0, len(hello), size)]


def records(size):
    """Sends the hello in small records, each a segment."""

    def change(hello):
        body = hello[5:]
        return [hello[:3] + struct.pack(">H", len(part)) + part for part in (body[i : i + size] for i in range(0, len(body), size))]

    return change


def extensions(hello):
    """Takes a hello apart: what comes before its extensions, and those."""
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + struct.unpack(">H", hello[at : at + 2])[0]
    at += 1 + hello[at]
    head, rest, found = hello[9:at], hello[at + 2 :], []
    while rest:
        kind, size = struct.unpack(">HH", rest[:4])
        found.append((kind, rest[4 : 4 + size]))
        rest = rest[4 + size :]
    return head, found


def put_together(head, found):
    exts = b"".join(struct.pack(">HH", kind, len(data)) + data for kind, data in found)
    body = head + struct.pack(">H", len(exts)) + exts
    shake = b"\x01" + struct.pack(">I", len(body))[1:] + body
    parts = [shake[i : i + 16000] for i in range(0, len(shake), 16000)]
    return [b"\x16\x03\x01" + struct.pack(">H", len(part)) + part for part in parts]


def extra(kind, size=0, data=""):
    """Adds an extension."""

    def change(hello):
        head, found = extensions(hello)
        return put_together(head, found + [(kind, bytes.fromhex(data) or os.urandom(size))])

    return change


def named(*names, kind=0, twice=False):
    """Names others than OpenSSL would."""

    def change(hello):
        head, found = extensions(hello)
        entries = b"".join(bytes([kind]) + struct.pack(">H", len(n)) + n for n in (name.encode("latin-1") for name in names))
        sni = (0, struct.pack(">H", len(entries)) + entries)
        others = [e for e in found if e[0] != 0]
        return put_together(head, [sni] * (2 if twice else 1) + others)

    return change


CHANGES = {"pieces": pieces, "records": records, "extra": extra, "named": lambda names, **how: named(*names, **how)}


def plain(host, say, port=443, wait=3):
    """Sends bytes that are no TLS, in hex, and says what comes back."""
    with connect(host, port) as s:
        s.sendall(bytes.fromhex(say))
        s.settimeout(wait)
        got = s.recv(100)
        return "ok %r" % got if got else "closed"


# HTTP.


def web(host, requests, port=80):
    """Sends requests as they are, one after the other on one connection, and says
    how each was answered."""
    outcomes = []
    with connect(host, port) as s:
        for request in requests:
            try:
                s.sendall(request.encode("latin-1"))
                response = http.client.HTTPResponse(s)
                response.begin()
                body = response.read(300).decode(errors="replace").split("\n")[0] if response.status != 101 else ""
                outcomes.append("%d %s" % (response.status, body))
            except (OSError, http.client.HTTPException) as e:
                outcomes.append(reason(e))
                break
    return "ok " + " | ".join(outcomes)


def socket_of_web(host, path="/socket"):
    """Upgrades a connection to another protocol and talks on it."""
    with connect(host, 80) as s:
        s.sendall(
            b"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n" % (path.encode(), host.encode())
        )
        f = s.makefile("rb")
        status = f.readline().split()[1]
        while f.readline().strip():
            pass
        if status != b"101":
            return "ok %s" % status.decode()
        s.sendall(b"and back\n")
        return "ok 101 " + f.readline().decode().strip()


# Outcomes.

NUMBERS = {
    errno.ECONNREFUSED: "refused", errno.ECONNRESET: "reset", errno.EPIPE: "reset", errno.ECONNABORTED: "closed",
    errno.EHOSTUNREACH: "unreachable", errno.ENETUNREACH: "unreachable", errno.EACCES: "unreachable", errno.EPERM: "unreachable",
    errno.ETIMEDOUT: "timeout", errno.EADDRNOTAVAIL: "unreachable", errno.EINVAL: "invalid", errno.EMSGSIZE: "too long",
}


def reason(e):
    if isinstance(e, socket.gaierror):
        return "name " + {socket.EAI_NONAME: "unknown", socket.EAI_AGAIN: "again", socket.EAI_FAIL: "failed", socket.EAI_NODATA: "empty"}.get(e.errno, str(e))
    if isinstance(e, TimeoutError):
        return "timeout"
    if isinstance(e, ssl.SSLError):
        return "tls %s" % e.reason
    if isinstance(e, http.client.RemoteDisconnected):
        return "closed"
    if isinstance(e, ConnectionAbortedError):
        return "closed"
    if isinstance(e, OSError) and e.errno in NUMBERS:
        return NUMBERS[e.errno]
    return "%s: %s" % (type(e).__name__, e)


def outcome(operation, arguments):
    try:
        return globals()[operation](**arguments)
    except Exception as e:  # whatever goes wrong is the outcome
        return reason(e)


def main(trials, ca):
    with open(CA, "w") as f:
        f.write(ca)
    print(json.dumps([outcome(*trial) for trial in trials]))
