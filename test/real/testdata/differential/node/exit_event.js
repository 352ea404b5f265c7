process.on('exit', (c) => console.log('exit', c));
process.on('beforeExit', (c) => console.log('beforeExit', c));
