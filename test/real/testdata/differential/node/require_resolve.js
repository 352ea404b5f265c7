console.log(require.resolve('fs'), require.resolve.paths('x'), require.extensions, Object.keys(require));
