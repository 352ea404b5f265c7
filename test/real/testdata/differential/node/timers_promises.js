require('timers/promises').setTimeout(5, 'v').then(console.log);
