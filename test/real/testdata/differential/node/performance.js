const { performance } = require('perf_hooks');
const t = performance.now(); for (let i = 0; i < 1e5; i++); console.log(performance.now() >= t, performance.nodeTiming.name, process.hrtime().length, process.uptime() > 0);
