const net = require('net'), stream = require('stream'), tty = require('tty');
for (const s of [process.stdin, process.stdout, process.stderr])
  console.log(s instanceof net.Socket, s instanceof stream.Duplex, s instanceof tty.WriteStream, s.fd, s.isTTY, s._type, s.writable, s.readable, Object.keys(s).join());
