// Starts Node ahead of the code that it will run.
//
// The agent starts `node --expose-internals -r THIS -e 0`, and Node loads this
// module as the last step of its start-up. Here the start-up stops until the code
// comes on descriptor 63, which is put where the one from the command line was;
// then it goes on. So Node itself runs the code, with no frame beneath it. While it
// waits nobody else does, so it goes through what is to come once before.
//
// What the command line and this module bring in is taken back before it ends.
'use strict';

// Not the module fs, whose first use loads half of the library.
const fs = process.binding('fs');
const control = 63;

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

// What Node loads from here to the code; and what it loads besides because there is
// a module like this one.
const ahead = [
  'internal/modules/esm/loader', 'internal/source_map/source_map', 'module',
  'internal/process/esm_loader',
];
const besides = [
  'internal/modules/esm/assert', 'internal/modules/esm/module_map',
  'internal/modules/esm/translators',
];

// The one module that hands out internalBinding warns of that, and makes it global.
function bindings(load) {
  const { emitWarning } = process;
  process.emitWarning = () => {};
  const { internalBinding } = load('internal/test/binding');
  process.emitWarning = emitWarning;
  return internalBinding;
}

// Does what every program's start, first output and end do, because Node compiles
// its library when it is used, module by module and function by function. No
// descriptor is touched: the output is a stream's whose handle takes everything,
// and internal/util/colors, which makes the stream of stderr, is not loaded.
function rehearse(load) {
  const listed = process.moduleLoadList.length;
  const globals = new Set(Object.getOwnPropertyNames(globalThis));
  const internalBinding = bindings(load);
  const { async_id_fields: ids, constants: { kAsyncIdCounter } } = internalBinding('async_wrap');
  const nextId = ids[kAsyncIdCounter];

  [...ahead, ...besides].forEach(load);
  load('internal/fs/promises'); // as the first use of fs does
  const { Socket } = load('net');
  const { Console } = load('internal/console/constructor');
  const handle = { getAsyncId: () => nextId, writeUtf8String: () => 0, writeLatin1String: () => 0 };
  const stdout = new Socket({ handle, readable: false, writable: true });
  new Console({ stdout, colorMode: false }).log('%s', 0, 0, {});
  process._tickCallback();
  Buffer.alloc(4).readUInt32BE();
  void load('internal/process/esm_loader').esmLoader;
  load('internal/modules/helpers').addBuiltinLibsToObject({}, '');
  load('internal/process/execution').evalScript('[eval]', '', false, false);

  collect(internalBinding('v8'));
  ids[kAsyncIdCounter] = nextId;
  for (const name of Object.getOwnPropertyNames(globalThis)) {
    if (!globals.has(name)) delete globalThis[name];
  }
  process.moduleLoadList.length = listed;
  process.moduleLoadList.push(...ahead.map((id) => `NativeModule ${id}`));
}

// Collects the garbage, which would be done while the program runs.
function collect({ setFlagsFromString }) {
  const flags = ['allow-natives-syntax', 'expose-gc'];
  for (const flag of flags) setFlagsFromString(`--${flag}`);
  Function('%ScheduleGCInStackCheck(); for (let i = 0; i < 2; i++);')();
  for (const flag of flags) setFlagsFromString(`--no-${flag}`);
}

// Makes the internal modules what they are without --expose-internals.
function hideInternals(Builtin) {
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
  const { loadBuiltinModule } = require('internal/modules/helpers');
  const Builtin = loadBuiltinModule('internal/options').constructor;
  hideInternals(Builtin);
  options.get('--expose-internals').value = false;
  options.get('--require').value = [];
  define('_preload_modules', []);
  delete require.cache[__filename];
  module.constructor._pathCache = { __proto__: null };
  // Threads of the code's load this module too, and have no code to wait for.
  if (process.abort.disabled) return;

  rehearse((id) => Builtin.map.get(id).compileForInternalLoader());
  write(`R${process.pid}\n`);
  const code = read(read(4).readUInt32BE()).toString();
  options.get('--eval').value = code;
  process.execArgv = ['-e', code];
  define('_eval', code);
  write('G');
  fs.close(control, undefined, {});
}

main();
