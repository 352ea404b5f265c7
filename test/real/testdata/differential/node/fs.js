const fs = require('fs');
fs.writeFileSync('/tmp/f', 'x'); console.log(fs.statSync('/tmp/f').size); fs.promises.readFile('/tmp/f', 'utf8').then((t) => { console.log(t); fs.unlinkSync('/tmp/f'); });
