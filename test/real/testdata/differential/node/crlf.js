console.log(1)
console.log(`a
b`.length)
