process.emitWarning('careful'); new Buffer(1);
