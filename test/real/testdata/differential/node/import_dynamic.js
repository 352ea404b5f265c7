import('fs').then((fs) => console.log(typeof fs.readFileSync, Object.keys(fs).length));
