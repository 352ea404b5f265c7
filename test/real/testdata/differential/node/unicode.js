console.log('żółć 日本語 🐍 \u202e \x00 \ud800'); process.stdout.write(Buffer.from([0xff, 0xfe, 10]));
