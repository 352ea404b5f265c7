process.exit('6');
