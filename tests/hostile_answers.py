"""Programs that try to pass without knowing the answer, or to break what reads their source, output or result.

`HOSTILE` are all scripts for stdin tests, those of the other files too, and `FUNCTIONS` define `solve` for function
tests: none may ever be scored right where the answer is a secret.
"""

from hostile_limits import MEMORY, PROCESSES, TIME, programs
from hostile_walls import FILES, KERNEL

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
EQUAL_TO_EVERYTHING = """class Same%s:
    def __eq__(self, other):
        return True
    def __ne__(self, other):
        return False
    __hash__ = None
    def __repr__(self):
        return 'x'
def solve(x):
    return Same(%s)
"""
SAME = {
    "equal to everything": ("", ""),
    "a text equal to everything": ("(str)", "'x'"),
    "a list equal to everything": ("(list)", "[1]"),
    "a dictionary equal to everything": ("(dict)", ""),
    "a number equal to everything": ("(int)", "1"),
}
"""The class that a program's `Same` extends, and what its answer is made of."""
FUNCTIONS = {name: EQUAL_TO_EVERYTHING % parts for name, parts in SAME.items()} | programs(r"""
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
