const http = require('http');
const s = http.createServer((q, r) => r.end(q.url)).listen(0, '127.0.0.1', () => http.get({ host: '127.0.0.1', port: s.address().port, path: '/p' }, (r) => r.on('data', (d) => console.log(r.statusCode, d.toString())).on('end', () => s.close())));
