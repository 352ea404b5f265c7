const stat = require('fs').readFileSync('/proc/self/stat', 'utf8').split(' ');
console.log(stat[3], stat[4] === stat[0], stat[5] === stat[0], stat[6], stat[7]);
