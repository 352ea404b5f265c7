import('./no-such.mjs').catch((e) => console.log(e.code, e.message));
