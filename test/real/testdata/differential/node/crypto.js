const c = require('crypto');
console.log(c.createHash('sha256').update('x').digest('hex'), c.randomBytes(8).length, c.randomUUID().length, new Set([Math.random(), Math.random()]).size, c.getHashes().length, c.webcrypto.subtle !== undefined);
