const ż = '日本'; console.log(ż, '🐍'.length, `\
cont`);
