require('child_process').exec('echo out; echo err >&2; exit 3', (e, out, err) => console.log(e.code, out, err));
