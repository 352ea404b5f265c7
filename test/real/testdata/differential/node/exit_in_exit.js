process.on('exit', () => process.exit(7));
