console.log('not printed');
function f( {
