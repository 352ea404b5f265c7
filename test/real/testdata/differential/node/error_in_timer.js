setTimeout(() => { console.log('t'); null.x; }, 1);
