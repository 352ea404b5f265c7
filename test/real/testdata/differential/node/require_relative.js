const fs = require('fs');
fs.writeFileSync('own.js', 'exports.n = __filename; exports.p = module.parent && module.parent.id; exports.m = require.main === module');
console.log(require('./own'), Object.keys(require.cache), require.main);
fs.unlinkSync('own.js');
