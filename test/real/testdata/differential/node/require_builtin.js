console.log(typeof require('fs').readFileSync, require('node:path').join('a', 'b'), require('module').builtinModules.join());
