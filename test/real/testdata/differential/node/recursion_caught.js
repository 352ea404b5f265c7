let n = 0; (function f() { n++; f(); }).call; try { (function f() { n++; f(); })(); } catch (e) { console.log(e instanceof RangeError, n > 5000); }
