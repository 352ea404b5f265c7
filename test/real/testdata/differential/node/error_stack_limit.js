Error.stackTraceLimit = 50;
console.log(new Error('x').stack);
