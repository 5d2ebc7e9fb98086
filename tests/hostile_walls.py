"""Programs that try to harm or to escape, through files, the kernel, the network or other processes.

`ESCAPES` print whatever they find of what lies outside; `@NAME@` is filled in by a test. System calls are by their
numbers on x86_64.
"""

from hostile_limits import programs

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
