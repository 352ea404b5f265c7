process.exitCode = 4; console.log('goes on');
