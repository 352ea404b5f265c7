console.log(typeof gc, typeof global.gc, new WeakRef({}).deref() !== undefined);
