require('dns').lookup('localhost', { family: 4 }, (e, a) => console.log(e, a));
