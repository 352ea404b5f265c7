const vm = require('vm');
const { cachedData } = new vm.Script('1', { produceCachedData: true });
console.log(cachedData.subarray(0, 16).toString('hex'));
console.log(typeof gc, vm.runInNewContext('typeof gc'));
try { Function('%GetOptimizationStatus(0)'); } catch (e) { console.log(e.message); }
