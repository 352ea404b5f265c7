for (const n of ['__filename', '__dirname', 'require', 'module', 'exports', 'process', 'fs', 'fetch']) console.log(n, Object.keys(Object.getOwnPropertyDescriptor(globalThis, n) ?? {}));
console.log(fs === require('fs'), os.EOL === '\n');
