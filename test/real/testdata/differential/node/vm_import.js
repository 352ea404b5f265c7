new (require('vm').Script)('import("fs").catch((e) => console.log(e.code))').runInThisContext();
