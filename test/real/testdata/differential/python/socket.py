import socket, _socket
a, b = socket.socketpair(); a.send(b"x"); print(b.recv(1), a.family, a.getsockname(), socket.getdefaulttimeout(), isinstance(a, _socket.socket), a.fileno())
