console.log(require('inspector').url(), process.debugPort);
