<!-- a comment
console.log('html');
