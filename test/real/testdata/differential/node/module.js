console.log(module, exports === module.exports, __filename, __dirname, this === globalThis, require.main, module.parent, module.children);
