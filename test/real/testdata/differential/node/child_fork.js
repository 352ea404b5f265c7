const fs = require('fs');
fs.writeFileSync('/tmp/forked.js', 'process.on("message", (m) => { process.send([m, process.execArgv, process.argv.length]); process.disconnect(); })');
const c = require('child_process').fork('/tmp/forked.js');
c.on('message', (m) => console.log(m)).on('exit', (code) => { console.log(code); fs.unlinkSync('/tmp/forked.js'); });
c.send('hi');
