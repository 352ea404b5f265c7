process.on('SIGUSR2', (s, n) => { console.log(s, n); clearTimeout(t); });
const t = setTimeout(() => {}, 5000);
process.kill(process.pid, 'SIGUSR2');
