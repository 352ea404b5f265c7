// Starts Node ahead of the code that it will run.
//
// The agent starts `node --expose-internals -r THIS -e 0`, and Node loads this
// module as the last step of its start-up. Here the start-up stops until the code
// comes on descriptor 3, which is put where the one from the command line was;
// then it goes on. So Node itself runs the code, with no frame beneath it.
//
// What the command line and this module bring in is taken back before it ends.
'use strict';

// Not the module fs, whose first use loads half of the library.
const fs = process.binding('fs');
const control = 3;

function check(context) {
  if (context.errno !== undefined) process.reallyExit(1);
}

function read(size) {
  const bytes = Buffer.alloc(size);
  for (let have = 0; have < size;) {
    const context = {};
    const n = fs.read(control, bytes, have, size - have, -1, undefined, context);
    check(context);
    if (n === 0) process.reallyExit(0);
    have += n;
  }
  return bytes;
}

function write(text) {
  const context = {};
  fs.writeString(control, text, null, 'latin1', undefined, context);
  check(context);
}

// Makes the internal modules what they are without --expose-internals.
function hideInternals() {
  const { loadBuiltinModule } = require('internal/modules/helpers');
  const Builtin = loadBuiltinModule('internal/options').constructor;
  const isPublic = (id) => !`${id}`.startsWith('internal/');
  for (const name of ['canBeRequiredByUsers', 'canBeRequiredWithoutScheme']) {
    const original = Builtin[name];
    Builtin[name] = (id) => isPublic(id) && original(id);
  }
  const names = Builtin.getCanBeRequiredByUsersWithoutSchemeList().filter(isPublic);
  Builtin.getCanBeRequiredByUsersWithoutSchemeList = () => [...names];
  module.constructor.builtinModules = [...names];
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
  module.constructor._pathCache = { __proto__: null };
  // Threads of the code's load this module too, and have no code to wait for.
  if (process.abort.disabled) return;

  write(`R${process.pid}\n`);
  const code = read(read(4).readUInt32BE()).toString();
  options.get('--eval').value = code;
  process.execArgv = ['-e', code];
  define('_eval', code);
  write('G');
  fs.close(control, undefined, {});
}

main();
