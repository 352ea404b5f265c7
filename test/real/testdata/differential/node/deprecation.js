require('util')._extend({}, {}); require('punycode'); console.log(typeof process.binding('fs'));
