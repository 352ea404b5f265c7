const p = Promise.reject(new Error('late')); setTimeout(() => p.catch(() => {}), 1);
process.on('unhandledRejection', (r) => console.log('unhandled', r.message));
process.on('rejectionHandled', () => console.log('handled'));
