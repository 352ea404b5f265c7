throw Object.assign(new Error('with code'), { code: 'E_X', list: [1, 2] });
