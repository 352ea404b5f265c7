console.log('ignores its input');
