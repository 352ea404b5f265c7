console.log(Object.getOwnPropertyNames(process).join(), process._preload_modules);
for (const n of ['_eval', '_preload_modules', 'execArgv', 'argv']) console.log(Object.getOwnPropertyDescriptor(process, n));
