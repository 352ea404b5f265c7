raise ValueError("\ud800 \udcff")
