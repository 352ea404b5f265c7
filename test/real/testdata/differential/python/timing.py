import time
t = time.perf_counter(); time.sleep(0.05); print(0.04 < time.perf_counter() - t < 5, time.process_time() < 5, time.tzname, time.daylight)
