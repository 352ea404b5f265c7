(async () => { for await (const x of (async function*() { yield 1; yield 2; })()) console.log(x); throw new TypeError('async'); })();
