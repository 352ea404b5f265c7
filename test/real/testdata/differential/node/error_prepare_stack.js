Error.prepareStackTrace = (e, frames) => frames.map((f) => `${f.getFileName()}:${f.getLineNumber()}:${f.getFunctionName()}`);
console.log(new Error('x').stack);
