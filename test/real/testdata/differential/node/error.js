function f(x) { return x.y.z; }
function g() { f({}); }
g();
