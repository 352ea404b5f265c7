for (let i = 0; i < 50; i++) console.log(i, 'x'.repeat(21000));
