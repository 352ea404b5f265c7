from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(2) as e: print(list(e.map(abs, range(-5, 5))))
