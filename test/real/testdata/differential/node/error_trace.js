console.trace('here');
