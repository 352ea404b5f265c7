console.log('x'); process.exit(3); console.log('not');
