console.log(process.pid === process.ppid, process.ppid, process.cwd(), process.umask(), process.exitCode, process.connected, process.version, process.versions.v8, process.arch, process.platform, process.release.name, process.features, process.config.variables.node_shared);
console.log(process.getuid(), process.getgid(), process.getgroups(), process.env);
