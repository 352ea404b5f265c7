let n = 0; const t = setInterval(() => { console.log(n); if (++n === 3) clearInterval(t); }, 5);
setTimeout(() => console.log('unref'), 60000).unref();
