console.log(process.allowedNodeEnvironmentFlags.size, process.execArgv.length, require('v8').getHeapStatistics().heap_size_limit > 1e7, process.report.excludeNetwork);
