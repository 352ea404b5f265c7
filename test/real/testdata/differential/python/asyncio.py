import asyncio
async def f(n):
    await asyncio.sleep(n / 100); return n
async def main(): print(await asyncio.gather(*[f(i) for i in range(5)]))
asyncio.run(main())
