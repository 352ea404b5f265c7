const { Worker } = require('worker_threads');
new Worker(`const { parentPort } = require('worker_threads');
let internal; try { require('internal/options'); internal = true; } catch (e) { internal = e.code; }
parentPort.postMessage([process.argv.length, internal, require('module').builtinModules.length, Object.keys(require.cache), process._preload_modules])`, { eval: true })
  .on('message', (m) => console.log(m)).on('exit', (c) => console.log('exit', c));
