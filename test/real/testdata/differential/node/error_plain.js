throw new Error('plain');
