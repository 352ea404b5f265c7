console.log('Ã©ÿ€')
