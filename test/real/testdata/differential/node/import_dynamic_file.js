const fs = require('fs');
fs.writeFileSync('/tmp/own.mjs', 'export default 42; console.log(import.meta.url)');
import('/tmp/own.mjs').then((m) => { console.log(m.default); fs.unlinkSync('/tmp/own.mjs'); });
