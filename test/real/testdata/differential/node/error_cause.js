throw new TypeError('outer', { cause: new RangeError('inner') });
