"""Programs that try to exceed their limits of processes, of memory or of time.

System calls are by their numbers on x86_64.
"""


def programs(text: str) -> dict[str, str]:
    """The programs of a text, each under a line `### name`."""
    sections = (section.split("\n", 1) for section in text.split("\n### ")[1:])
    return {name: program.rstrip() + "\n" for name, program in sections}


PROCESSES = programs(r"""
### fork bomb
import os
while True:
    os.fork()

### fork bomb that never gives up
import os
while True:
    try:
        os.fork()
    except OSError:
        pass

### double fork, to become a daemon
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)

### vfork by the C library
import ctypes
ctypes.CDLL(None).vfork()

### clone by number
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
while call(56, 17, 0, 0, 0, 0) >= 0:
    pass

### clone3 by number
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
b = ctypes.create_string_buffer(88)
call(435, b, 88)

### 32-bit calls
import ctypes, mmap
code = bytes.fromhex('b802000000cd80c3')
m = mmap.mmap(-1, 4096, prot=7)
m.write(code)
at = ctypes.addressof(ctypes.c_char.from_buffer(m))
ctypes.CFUNCTYPE(ctypes.c_int)(at)()
while True:
    pass

### shell
import os
os.system('sleep 1000 &')

### pipe to a shell
import os
print(os.popen('cat /etc/passwd').read())

### subprocess
import subprocess
subprocess.Popen(['/usr/bin/sleep', '1000'])

### spawn
import os
os.posix_spawn('/usr/bin/sleep', ['sleep', '1000'], {})

### terminal
import pty
pty.spawn(['/usr/bin/sleep', '1000'])

### pool of processes
import multiprocessing
multiprocessing.Pool(64).map(bytearray, [1 << 30] * 64)

### becomes a sleeping command
import os
os.execv('/usr/bin/sleep', ['sleep', '1000'])

### becomes a busy shell
import os
os.execv('/usr/bin/sh', ['sh', '-c', 'while :; do :; done'])

### session of its own
import os, time
os.setsid()
time.sleep(1000)

### thread bomb
import threading, time
threading.stack_size(32768)
while True:
    threading.Thread(target=time.sleep, args=(1000,)).start()

### threads that never end
import threading
for _ in range(4):
    threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()
""")
MEMORY = programs(r"""
### one large block
x = bytearray(1 << 40)

### blocks until refused, then on
x = []
while True:
    try:
        x.append(b'1' * (1 << 20))
    except MemoryError:
        pass

### list that grows
x = [0]
while True:
    x += x

### string that doubles
x = 'a'
while True:
    x += x

### many processes, a block each
import os
for _ in range(64):
    if os.fork() == 0:
        x = b'1' * (200 << 20)
        while True:
            pass

### many threads, a block each
import threading, time
def eat():
    x = b'1' * (40 << 20)
    time.sleep(1000)
for _ in range(12):
    threading.Thread(target=eat).start()

### anonymous map
import mmap
m = [mmap.mmap(-1, 64 << 20) for _ in range(64)]
for x in m:
    x.write(b'1' * (64 << 20))

### map of a sparse file
import mmap
f = open('x', 'wb+')
f.truncate(1 << 40)
mmap.mmap(f.fileno(), 1 << 40)

### file in memory
import os
f = os.memfd_create('x')
while True:
    os.write(f, b'1' * (1 << 20))

### secret memory by number
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
f = call(447, 0)
os.ftruncate(f, 1 << 30)

### shared memory of System V
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
while call(29, 0, 1 << 28, 0o1600) >= 0:
    pass

### shared memory of POSIX
open('/dev/shm/x', 'wb').write(b'1' * (1 << 30))

### shared memory of multiprocessing
from multiprocessing import shared_memory
shared_memory.SharedMemory(create=True, size=1 << 30)

### message queues
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
while call(68, 0, 0o1600) >= 0:
    pass

### pipes that are filled
import os, fcntl
p = []
while True:
    r, w = os.pipe()
    fcntl.fcntl(w, 1031, 1 << 20)
    os.set_blocking(w, False)
    os.write(w, b'1' * (1 << 20))
    p.append(r)

### sockets that are filled
import os, socket
kept = []
while True:
    a, b = socket.socketpair()
    a.setblocking(False)
    kept += [a, b]
    try:
        while True:
            a.send(b'1' * 65536)
    except BlockingIOError:
        pass

### zip bomb
import zlib
x = zlib.compressobj()
bomb = b''.join(x.compress(bytes(1 << 20)) for _ in range(1000)) + x.flush()
print(len(zlib.decompress(bomb)))

### recursion without end
import sys
sys.setrecursionlimit(10**9)
def f(n):
    return f(n + 1) + 1
print(f(0))

### recursion through C
import sys, functools
sys.setrecursionlimit(10**9)
@functools.lru_cache(None)
def f(n):
    return f(n + 1)
f(0)

### lists in lists
x = []
for _ in range(10**6):
    x = [x]
print(x)

### source that folds
x = ((((1,) * 256,) * 256,) * 256,) * 256
print(x)

### fills /tmp
for i in range(10**6):
    open(f'/tmp/{i}', 'wb').write(b'1' * 100_000)

### fills /tmp and goes on
i = 0
while True:
    i += 1
    try:
        open(f'/tmp/{i}', 'wb').write(b'1' * 10_000)
    except OSError:
        pass

### files without content
import os
for i in range(10**7):
    os.close(os.open(f'/tmp/{i}', os.O_CREAT))

### links without end
import os
open('a', 'w')
for i in range(10**7):
    os.link('a', f'l{i}')

### folders without end
import os
while True:
    os.mkdir('d')
    os.chdir('d')

### one large file
with open('/tmp/x', 'wb') as f:
    while True:
        f.write(b'1' * (1 << 20))
""")
TIME = programs(r"""
### sleep
import time
time.sleep(1000)

### loop
while True:
    pass

### loop that catches everything
while True:
    try:
        while True:
            pass
    except BaseException:
        pass

### loop deaf to signals
import signal
for number in signal.valid_signals():
    try:
        signal.signal(number, signal.SIG_IGN)
    except OSError:
        pass
while True:
    pass

### sleep deaf to signals
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
time.sleep(1000)

### loop at exit
import atexit
@atexit.register
def on():
    while True:
        pass

### sleep at exit
import atexit, time
atexit.register(time.sleep, 1000)

### thread that outlives the program
import threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()

### deadlock
import threading
lock = threading.Lock()
lock.acquire()
lock.acquire()

### waits for a signal
import signal
signal.pause()

### stops itself
import os, signal
os.kill(os.getpid(), signal.SIGSTOP)
while True:
    pass

### reads stdin forever
import sys
while True:
    sys.stdin.read()

### reads zeros forever
for _ in open('/dev/zero', 'rb'):
    pass

### regular expression that backtracks
import re
re.match('(a|aa)+$', 'a' * 60 + 'b')

### power tower
print(9**9**9)

### long number in decimal
import sys
sys.set_int_max_str_digits(0)
print(str(1 << (1 << 25))[:9])

### long number, short limit
print(10**5000)

### factorial
import math
math.factorial(10**8)

### raises its CPU limit
import resource
for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS):
    resource.setrlimit(kind, (-1, -1))
while True:
    pass

### raises limits by number
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
b = (ctypes.c_ulong * 2)(-1, -1)
[call(160, kind, b) for kind in range(16)]
x = b'1' * (1 << 34)

### asks for priority
import os
os.nice(-20)

### asks for real time
import os
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
""")
