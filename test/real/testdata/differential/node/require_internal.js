try { require('internal/options'); } catch (e) { console.log(e.stack); }
console.log(require('module').isBuiltin('internal/options'), require('module').isBuiltin('fs'), require('module').isBuiltin('node:test'));
import('internal/options').catch((e) => console.log(e.code));
import('node:internal/options').catch((e) => console.log(e.code));
