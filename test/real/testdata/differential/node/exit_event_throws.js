process.on('exit', () => { throw new Error('at exit'); });
