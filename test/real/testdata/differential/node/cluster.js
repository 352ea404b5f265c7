const cluster = require('cluster');
console.log(cluster.isPrimary, cluster.settings, process.env.NODE_UNIQUE_ID);
