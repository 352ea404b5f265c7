const { Worker } = require('worker_threads');
new Worker('throw new Error("in the thread")', { eval: true });
