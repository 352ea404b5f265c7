console.log(require('fs').readFileSync('/proc/self/environ', 'utf8').split('\0'), require('fs').readFileSync('/proc/self/limits', 'utf8'));
