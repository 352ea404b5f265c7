const a = Buffer.alloc(50 << 20, 1); console.log(a.length, process.memoryUsage().rss > (50 << 20));
