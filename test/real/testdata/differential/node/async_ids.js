const { AsyncResource, executionAsyncId, triggerAsyncId, createHook } = require('async_hooks');
console.log(new AsyncResource('a').asyncId(), executionAsyncId(), triggerAsyncId());
const seen = [];
createHook({ init(id, type, trigger) { seen.push([id, type, trigger]); } }).enable();
process.nextTick(() => {});
Promise.resolve().then(() => {});
setTimeout(() => { console.error('late'); require('fs').writeSync(1, `${seen.join(' ')}\n`); }, 1);
