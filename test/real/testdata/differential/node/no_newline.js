process.stdout.write('end')
