const fs = require('fs');
const flags = () => [0, 1, 2].map((fd) => fs.readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1').match(/flags:\s*(\d+)/)[1]).join();
const before = flags();
const handles = process._getActiveHandles().length;
console.log(before, handles);
console.log(flags());
console.error(flags());
