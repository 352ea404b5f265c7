const z = require('zlib'); console.log(z.gunzipSync(z.gzipSync('text')).toString(), z.brotliDecompressSync(z.brotliCompressSync('br')).toString());
