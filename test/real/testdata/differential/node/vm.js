const vm = require('vm');
console.log(vm.runInNewContext('1 + a', { a: 1 }), vm.runInThisContext('typeof require'));
try { new vm.Script('x = ', { filename: 'own.js' }); } catch (e) { console.log(e.stack); }
