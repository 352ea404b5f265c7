console.log(require('child_process').spawnSync(process.execPath, ['-e', 'console.log(process.argv, process.execArgv, module.id)']).stdout.toString());
