require('child_process').spawnSync('cat; echo child', { shell: true, stdio: 'inherit' });
