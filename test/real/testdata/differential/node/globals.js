console.log(Object.getOwnPropertyNames(globalThis).join(), Object.keys(globalThis).join());
var a = 1; let b = 2; console.log(globalThis.a, globalThis.b);
