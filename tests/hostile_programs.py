"""Programs that try to harm, to escape, to outlast their limits, or to pass without knowing the answer.

`HOSTILE` are scripts for stdin tests and `FUNCTIONS` define `solve` for function tests: none may ever be scored right
where the answer is a secret. `ESCAPES` print whatever they find of what lies outside; `@NAME@` is filled in by a test.
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
OUTPUT = programs(r"""
### endless stdout
while True:
    print('x' * 1000)

### endless stderr
import sys
while True:
    print('x' * 1000, file=sys.stderr)

### endless stdout, errors ignored
import os
while True:
    try:
        os.write(1, b'x' * 65536)
    except OSError:
        pass

### stdout with a hole
import os
os.ftruncate(1, 1 << 40)

### stdout with a smaller hole
import os
os.ftruncate(1, 1 << 19)

### one endless line
import sys
while True:
    sys.stdout.write('9' * 65536)

### endless empty lines
while True:
    print()

### not UTF-8
import sys
sys.stdout.buffer.write(bytes(range(256)))

### half a surrogate pair
print('\ud800')

### half a surrogate pair, let through
import sys
sys.stdout.reconfigure(errors='surrogatepass')
print('\ud800')

### NUL in output
print('\0' * 1000)

### strange coding
# -*- coding: rot13 -*-
cevag(1)

### terminal escapes on stderr
raise SystemExit('\x1b[2J\x1b]0;owned\x07\r\n' * 100)

### numbers that compare with nothing
print('sNaN NaN 1e999999999999999999 Infinity')

### stdout that is closed
import os
os.close(1)
print(1)

### everything closed
import os
os.closerange(0, 65536)

### everything written to
import os
answer = b'{"status": "done", "detail": "", "seconds": 0.1, "clean": true, "size": 0}\n'
for n in range(1024):
    try:
        os.write(n, answer * 9)
    except OSError:
        pass
""")
FILES = programs(r"""
### deletes everything
import os
for folder, folders, files in os.walk('/', topdown=False):
    for name in files:
        try:
            os.remove(os.path.join(folder, name))
        except OSError:
            pass

### deletes /tmp itself
import os
os.rmdir('/tmp')

### locks /tmp
import os
os.chmod('/tmp', 0)

### rewrites the supervisor
open('/inside.py', 'w').write('')

### rewrites the standard library
import random
open(random.__file__, 'a').write('import os')

### plants bytecode
import os, random
open(os.path.dirname(random.__file__) + '/__pycache__/x.pyc', 'wb').write(b'x')

### symlink out
import os
os.symlink('/../../../../etc/passwd', '/tmp/x')
print(open('/tmp/x').read())

### hard link to the interpreter
import os, sys
os.link(sys.executable, '/tmp/x')

### device of its own
import os, stat
os.mknod('/tmp/x', stat.S_IFBLK | 0o666, os.makedev(254, 0))
print(open('/tmp/x', 'rb').read(9))

### other root
import os
os.chroot('/tmp')

### mount
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
print(call(165, b'none', b'/tmp', b'tmpfs', 0, 0), call(40, 1))
print(open('/proc/1/environ').read())

### memory device
print(open('/dev/mem', 'rb').read(9), open('/dev/kmsg').read(9))

### disk device
print(open('/dev/vda', 'rb').read(9))

### kernel settings
open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x')

### its own memory file
open('/proc/self/mem', 'rb+').write(b'x')
""")
KERNEL = programs(r"""
### kills its parent
import os, signal
os.kill(os.getppid(), signal.SIGKILL)

### kills everything
import os, signal
os.kill(-1, signal.SIGKILL)

### kills its group
import os, signal
os.killpg(0, signal.SIGKILL)

### kills every number
import os
for n in range(1, 40_000):
    try:
        os.kill(n, 9)
    except OSError:
        pass

### kills itself
import ctypes
ctypes.string_at(0)

### aborts
import os
os.abort()

### traces its parent
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
print(call(101, 16, os.getppid(), 0, 0))

### traces the supervisor
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
print(call(101, 0x4206, 1, 0, 0), call(310, 1, 0, 0, 0, 0, 0), call(438, 3, 0, 0))

### namespaces of its own
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
print(call(272, 0x10000000 | 0x20000))
print(open('/etc/passwd').read())

### becomes root
import os
os.setuid(0)

### restarts the machine
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
call(169, 0xfee1dead, 672274793, 0x1234567, 0)

### loads a module
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
print(call(175, b'x', 1, b''), call(246, 0, 0, 0, 0))

### clock of the machine
import time
time.clock_settime(time.CLOCK_REALTIME, 0)

### asynchronous calls
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
b = ctypes.create_string_buffer(120)
print(call(425, 8, b))

### programs in the kernel
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
print(call(321, 0, 0, 0), call(298, 0, 0, 0, 0, 0), call(323, 0))

### undoes its seal
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
print(call(157, 22, 0, 0, 0, 0), call(157, 4, 1, 0, 0, 0))
os.fork()

### x32 calls
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
print(call(0x40000000 + 57))
""")
FAKES = programs(r"""
### leaves at once
import os
os._exit(0)

### leaves politely
import sys
sys.exit(0)

### leaves with a message
raise SystemExit('all tests passed')

### claims success
print('test 1 of 1: passed')
print('True')

### echoes its input
import sys
print(sys.stdin.read())

### patches print
import builtins
builtins.print = lambda *a, **k: None
print(1)

### patches json and sys
import json, sys
json.dumps = json.loads = lambda *a, **k: '0'
sys.stdout.write = lambda text: 0
sys.exit = lambda *a: None

### patches equality
import builtins
class Same(str):
    __eq__ = lambda s, o: True
    __ne__ = lambda s, o: False
    __hash__ = str.__hash__
builtins.str = Same
print(Same('x'))

### empties sys.modules
import sys
sys.modules.clear()
print(1)

### prints every string it can reach
import gc, sys
frame = sys._getframe()
while frame:
    print(frame.f_globals, frame.f_locals)
    frame = frame.f_back
for thing in gc.get_objects():
    if isinstance(thing, (dict, list, tuple)):
        print(thing)

### answers in the supervisor's place
import sys
frame = sys._getframe()
while frame.f_back:
    frame = frame.f_back
frame.f_globals['reply'](open(1, 'wb'), b'x', status='done', detail='', seconds=0.1, clean=True)

### goes on as the supervisor
import sys
frame = sys._getframe()
while frame.f_back:
    frame = frame.f_back
frame.f_globals['main']()

### audit hook
import sys
sys.addaudithook(lambda *a: None)
sys.settrace(lambda *a: None)
sys.excepthook = lambda *a: None
raise KeyError

### imports the project
import steer_core
print(steer_core.__file__)

### imports the test runner
import pytest
pytest.exit('passed', 0)

### looks for the tests
import os
for folder, _, files in os.walk('/'):
    for name in files:
        if 'test' in name and 'lib' not in folder:
            print(open(os.path.join(folder, name)).read())
""")
WRITTEN_BY_CODE = {
    "source nested deeply": "x = " + "(" * 50_000 + ")" * 50_000,
    "source of many lines": "x = 1\n" * 150_000 + "while True:\n    pass\n",
    "NUL in source": "print(1)\0",
    "half a surrogate pair in source": "print('\ud800')",
    "source of 100 MB": "print(1)\n#" + "x" * (100 << 20),
}
HOSTILE = PROCESSES | MEMORY | TIME | OUTPUT | FILES | KERNEL | FAKES | WRITTEN_BY_CODE
FUNCTIONS = programs(r"""
### equal to everything
class Same:
    def __eq__(self, other):
        return True
    def __ne__(self, other):
        return False
    __hash__ = None
    def __repr__(self):
        return 'x'
def solve(x):
    return Same()

### a text equal to everything
class Same(str):
    def __eq__(self, other):
        return True
    def __ne__(self, other):
        return False
    __hash__ = None
    def __repr__(self):
        return 'x'
def solve(x):
    return Same('x')

### a list equal to everything
class Same(list):
    def __eq__(self, other):
        return True
    def __ne__(self, other):
        return False
    __hash__ = None
    def __repr__(self):
        return 'x'
def solve(x):
    return Same([1])

### a dictionary equal to everything
class Same(dict):
    def __eq__(self, other):
        return True
    def __ne__(self, other):
        return False
    __hash__ = None
    def __repr__(self):
        return 'x'
def solve(x):
    return Same()

### a number equal to everything
class Same(int):
    def __eq__(self, other):
        return True
    def __ne__(self, other):
        return False
    __hash__ = None
    def __repr__(self):
        return 'x'
def solve(x):
    return Same(1)

### not a number
def solve(x):
    return float('nan')

### no result
import os
def solve(x):
    os._exit(0)

### no function
solve = 3

### leaves before the call
import sys
sys.exit(0)
def solve(x):
    return x

### result written twice
import os
def solve(x):
    os.write(3, b'"x"')
    return x

### result written to every file
import os
def solve(x):
    for n in range(64):
        try:
            os.write(n, b'true')
        except OSError:
            pass
    os._exit(0)

### part of a result
import os
def solve(x):
    os.write(3, b'[1, ')
    os._exit(0)

### an answer in the result
import os
def solve(x):
    os.write(3, b'{"status": "done", "size": 1}\n"x"')
    os._exit(0)

### result that is closed
import os
os.close(3)
def solve(x):
    return x

### json that says yes
import json
json.dumps = lambda value: 'true'
def solve(x):
    return x

### json with a default
import json
json.JSONEncoder.default = lambda self, value: True
def solve(x):
    return object()

### result without end
def solve(x):
    y = []
    y.append(y)
    return y

### result nested deeply
import os
def solve(x):
    os.write(3, b'[' * 500_000 + b']' * 500_000)
    os._exit(0)

### result that is a bomb
import os
def solve(x):
    os.write(3, b'[' + b'[],' * 300_000 + b'0]')
    os._exit(0)

### result of many digits
import os
def solve(x):
    os.write(3, b'9' * 900_000)
    os._exit(0)

### sleeps in the call
import time
def solve(x):
    time.sleep(1000)

### a generator
def solve(x):
    yield x

### forks in the call
import os
def solve(x):
    os.fork()
    return x

### a class that is no solution
class Solution:
    def __getattr__(self, name):
        return lambda *a: True
""")
ESCAPES = programs(r"""
### reads the project's file
print(open('@PROJECT@').read())

### reads the home's file
print(open('@HOME@').read())

### reads the temporary file
print(open('@TEMPORARY@').read())

### searches all folders
import os
for folder, _, files in os.walk('/'):
    for name in files:
        if 'canary' in name:
            print(folder, name, open(os.path.join(folder, name)).read())

### searches by way of /proc
import glob
for path in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/*/root@PROJECT@'):
    print(open(path).read())

### lists processes
import os
print([n for n in os.listdir('/proc') if n.isdigit()])

### follows its files
import os
for n in range(64):
    try:
        print(os.readlink(f'/proc/self/fd/{n}'))
    except OSError:
        pass

### climbs out of its folder
import os
for _ in range(64):
    os.chdir('..')
print(open('.@PROJECT@').read())

### opens by a folder's descriptor
import os
for n in range(64):
    try:
        print(open(os.open('.@PROJECT@', os.O_RDONLY, dir_fd=n)).read())
    except OSError:
        pass

### reads the environment
import os, ctypes
print(os.environ, ctypes.CDLL(None).getenv(b'STEER_CANARY'))

### reads the users
print(open('/etc/passwd').read())
import pwd
print(pwd.getpwall())

### connects by TCP
import socket
print(socket.create_connection(('127.0.0.1', @PORT@), 1).recv(99))

### connects to an abstract name
import socket
s = socket.socket(socket.AF_UNIX)
s.connect('\0@ABSTRACT@')
print(s.recv(99))

### connects by number
import ctypes, struct
l = ctypes.CDLL(None)
n = l.syscall(41, 2, 1, 0)
l.connect(n, struct.pack('<H', 2) + struct.pack('>H', @PORT@) + bytes([127, 0, 0, 1]) + bytes(8), 16)
b = ctypes.create_string_buffer(99)
l.recv(n, b, 99, 0)
print(b.value)

### turns a pair into a connection
import socket
a, b = socket.socketpair(type=socket.SOCK_DGRAM)
a.sendto(b'out', '\0@DATAGRAM@')
a.connect('\0@DATAGRAM@')
a.send(b'out')

### asks for a name
import socket
print(socket.gethostbyname('example.org'))

### lists interfaces
import socket
print(socket.if_nameindex())

### writes the project's file
open('@PROJECT@', 'w').write('changed')

### writes the home's file
open('@HOME@', 'w').write('changed')

### removes the project's file
import os
os.remove('@PROJECT@')

### signals the parent
import os
os.kill(@PID@, 15)

### signals the parent by number
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
print(call(62, @PID@, 15), call(234, @PID@, @PID@, 15))

### reads the parent's memory
import ctypes, os
call = ctypes.CDLL(None, use_errno=True).syscall
print(open('/proc/@PID@/mem', 'rb').read(9), call(310, @PID@, 0, 0, 0, 0, 0))

### limits the parent
import resource
resource.prlimit(@PID@, resource.RLIMIT_NOFILE, (0, 0))
""")
