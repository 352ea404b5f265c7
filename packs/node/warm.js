// Starts Node ahead of the code that it will run.
//
// The agent starts `node --expose-internals -r THIS -e ''`, and Node loads this
// module as the last step of its start-up. Here the start-up stops until the code
// comes on descriptor 3, which is put where the one from the command line was;
// then it goes on. So Node itself runs the code, with no frame beneath it.
//
// What the command line and this module bring in is taken back before it ends.
'use strict';

const fs = require('fs');
const control = 3;

function read(size) {
  const bytes = Buffer.alloc(size);
  for (let have = 0; have < size;) {
    const n = fs.readSync(control, bytes, have, size - have);
    if (n === 0) process.reallyExit(0);
    have += n;
  }
  return bytes;
}

// Makes the internal modules what they are without --expose-internals.
function hideInternals() {
  const { loadBuiltinModule } = require('internal/modules/helpers');
  const Builtin = loadBuiltinModule('fs').constructor;
  const isPublic = (id) => !`${id}`.startsWith('internal/');
  for (const name of ['canBeRequiredByUsers', 'canBeRequiredWithoutScheme']) {
    const original = Builtin[name];
    Builtin[name] = (id) => isPublic(id) && original(id);
  }
  const names = Builtin.getCanBeRequiredByUsersWithoutSchemeList().filter(isPublic);
  Builtin.getCanBeRequiredByUsersWithoutSchemeList = () => [...names];
  require('module').builtinModules = [...names];
}

function define(name, value) {
  Object.defineProperty(process, name, { value, enumerable: true, configurable: true });
}

function main() {
  const { options } = require('internal/options');
  hideInternals();
  options.get('--expose-internals').value = false;
  options.get('--require').value = [];
  define('_preload_modules', []);
  delete require.cache[__filename];
  require('module')._pathCache = { __proto__: null };
  // Threads of the code's load this module too, and have no code to wait for.
  if (process.abort.disabled) return;

  fs.writeSync(control, `R${process.pid}\n`);
  const code = read(read(4).readUInt32BE()).toString();
  options.get('--eval').value = code;
  process.execArgv = ['-e', code];
  define('_eval', code);
  fs.writeSync(control, 'G');
  fs.closeSync(control);
}

main();
