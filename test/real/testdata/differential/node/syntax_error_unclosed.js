console.log(`a
