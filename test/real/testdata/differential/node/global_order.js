console.log(Reflect.ownKeys(globalThis).map(String).join());
for (const key of ['module', 'exports', '__dirname', '__filename', 'require'])
  console.log(key, JSON.stringify(Object.getOwnPropertyDescriptor(globalThis, key), (k, v) => typeof v === 'function' ? v.name : v instanceof Object && k === 'value' ? 'object' : v));
console.log(Reflect.ownKeys(process).map(String).join());
