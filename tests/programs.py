"""Programs that a model might write: harmless and hostile ones."""

from __future__ import annotations

FLOOD = (
    "import os\nwhile True:\n    for file in range(3, 9):\n"
    "        try:\n            os.write(file, {!r})\n        except OSError:\n            pass"
)

HARMLESS = {
    "answers": "",
    "prints": "print('x' * 100_000_000)",
    "imports": "import math, re, collections, heapq, itertools, string, hashlib, typing, datetime",
    "uses numpy": "import numpy\nassert numpy.eye(3).sum() == 3",
    "sleeps a little": "import time\ntime.sleep(0.01)",
    "keeps a file in its folder": (
        "import os\nopen('a', 'w').write('b')\nassert open('a').read() == 'b'\nos.remove('a')"
    ),
    "closes its streams": "import sys, os\nsys.stdout.close()\nos.close(2)",
    "has an even number of seeds": "import random\nassert random.random() == 0.8444218515250481",
    "sees an empty environment": (
        "import os\nassert set(os.environ) <= {'HOME', 'TMPDIR', 'LANG', 'LC_CTYPE', 'PATH', "
        "'PYTHONHASHSEED', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', "
        "'MALLOC_ARENA_MAX'}, dict(os.environ)"
    ),
    "has no file of its parent's open": "import os\nassert os.open(os.devnull, os.O_RDONLY) <= 8",
    "starts a thread": (
        "import threading\nfound = []\nthread = threading.Thread(target=found.append, args=(1,))\n"
        "thread.start()\nthread.join()\nassert found == [1]"
    ),
    "has threads by the dozen": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(24) as pool:\n"
        "    assert sum(map(len, pool.map(bytes, [1 << 20] * 99))) == 99 << 20"
    ),
    "has a pool of threads": (
        "from multiprocessing.dummy import Pool\n"
        "with Pool(3) as pool:\n    assert pool.map(abs, [-1, -2]) == [1, 2]"
    ),
    "recurses in a thread": (
        "import sys, threading\nsys.setrecursionlimit(99999)\nthreading.stack_size(64 << 20)\n"
        "def down(n):\n    return n and down(n - 1)\n"
        "thread = threading.Thread(target=down, args=(9999,))\nthread.start()\nthread.join()"
    ),
    "runs an event loop": (
        "import asyncio\nasync def one(i):\n    await asyncio.sleep(0.001)\n    return i\n"
        "async def all_():\n    return await asyncio.gather(*map(one, range(9)))\n"
        "assert asyncio.run(all_()) == list(range(9))"
    ),
    "waits for a thread in an event loop": (
        "import asyncio\nassert asyncio.run(asyncio.to_thread(sum, [1, 2])) == 3"
    ),
    "talks to itself": (
        "import socket\na, b = socket.socketpair()\na.sendall(b'x')\nassert b.recv(9) == b'x'"
    ),
    "keeps files for a while": (
        "import tempfile\nwith tempfile.TemporaryFile() as file:\n    file.write(b'x')\n"
        "with tempfile.NamedTemporaryFile() as file:\n    file.write(b'x')"
    ),
    "computes with the library": (
        "import decimal, fractions, hashlib, random, re, secrets, statistics, uuid\n"
        "hashlib.md5(b'x').hexdigest()\nrandom.SystemRandom().random()\nuuid.uuid4()\n"
        "assert decimal.Decimal(2).sqrt() < fractions.Fraction(3, 2)"
    ),
}
"""By what each does; they pass."""

WRONG = {
    "a wrong answer": ("def answer():\n    return 41", "failed AssertionError"),
    "no Python": ("def answer(:", "failed SyntaxError"),
    "leaves before it is tested": ("import sys\nsys.exit(0)", "failed SystemExit"),
    "leaves at once": ("import os\nos._exit(0)", "exited exit code 0"),
    "leaves when it is tested": ("def answer():\n    raise SystemExit(0)", "failed SystemExit"),
    "says that it ran": (
        (
            "import os\nfor file in range(3, 64):\n"
            "    try:\n        os.write(file, b'ran\\npassed\\n')\n"
            "    except OSError:\n        pass\n"
            "os._exit(0)"
        ),
        "exited exit code 0",
    ),
    "echoes what it is told": (
        (
            "import os\nfor file in range(3, 9):\n"
            "    try:\n        os.write(file, b'ran\\n')\n    except OSError:\n        pass\n"
            "heard = b''\nfor file in range(3, 9):\n"
            "    try:\n        heard = os.read(file, 99)\n        break\n    except OSError:\n"
            "        pass\n"
            "for file in range(3, 9):\n"
            "    try:\n        os.write(file, heard)\n    except OSError:\n        pass\n"
            "os._exit(0)"
        ),
        "exited exit code 0",
    ),
    "closes everything": ("import os\nos.closerange(0, 999)", None),
    "loops": ("while True:\n    pass", "out of time SIGXCPU"),
    "loops and prints": ("while True:\n    print('x' * 9999)", "out of time SIGXCPU"),
    "loops and catches everything": (
        (
            "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n"
            "    try:\n        while True:\n            pass\n"
            "    except BaseException:\n        pass"
        ),
        "killed SIGKILL",
    ),
    "waits for input": ("input()", "failed EOFError"),
    "takes all memory": ("kept = bytearray(1 << 33)", "failed MemoryError"),
    "recurses": ("import sys\nsys.setrecursionlimit(10**9)\ndef f():\n    f()\nf()", None),
    "forks": ("import os\nos.fork()", "forbidden call SIGSYS"),
    "forks and hides it": (
        "import os\ntry:\n    while True:\n        os.fork()\nexcept BaseException:\n    pass",
        "forbidden call SIGSYS",
    ),
    "starts a command": ("import os\nos.system('true')", "forbidden call SIGSYS"),
    "starts a subprocess": (
        "import subprocess\nsubprocess.Popen(['sleep', '99'])",
        "forbidden call SIGSYS",
    ),
    "becomes another program": (
        "import os\nos.execv('/bin/true', ['true'])",
        "forbidden call SIGSYS",
    ),
    "starts threads without end": (
        (
            "import threading, time\nthreading.stack_size(32768)\nwhile True:\n"
            "    threading.Thread(target=time.sleep, args=(99,), daemon=True).start()"
        ),
        "too many threads",
    ),
    "forks in a thread": (
        "import os, threading\nt = threading.Thread(target=os.fork)\nt.start()\nt.join()",
        "forbidden call SIGSYS",
    ),
    "makes a thread with a namespace of its own": (
        "import ctypes\nctypes.CDLL(None).syscall(56, 0x3D0F00 | 0x10000000, 0, 0, 0, 0)",
        "forbidden call SIGSYS",
    ),
    "reads its parent's environment in a thread": (
        (
            "import os\nfrom concurrent.futures import ThreadPoolExecutor\n"
            "with ThreadPoolExecutor() as pool:\n"
            "    pool.submit(open, f'/proc/{os.getppid()}/environ').result()"
        ),
        "failed PermissionError",
    ),
    "opens a socket": ("import socket\nsocket.socket()", "forbidden call SIGSYS"),
    "opens an IPv6 socket": (
        "import socket\nsocket.socket(socket.AF_INET6, socket.SOCK_DGRAM)",
        "forbidden call SIGSYS",
    ),
    "opens a local socket": (
        "import socket\nsocket.socket(socket.AF_UNIX)",
        "forbidden call SIGSYS",
    ),
    "opens a pair of sockets that can be sent to": (
        "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
        "forbidden call SIGSYS",
    ),
    "opens a pair of sockets of another family": (
        "import socket\nsocket.socketpair(socket.AF_INET)",
        "forbidden call SIGSYS",
    ),
    "sends to an address": (
        "import socket\na, b = socket.socketpair()\na.sendto(b'x', '/run/systemd/notify')",
        "forbidden call SIGSYS",
    ),
    "sends a file": (
        "import socket\na, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [0])",
        "forbidden call SIGSYS",
    ),
    "sends ahead of what was sent": (
        "import socket\na, b = socket.socketpair()\na.send(b'x', socket.MSG_OOB)",
        "forbidden call SIGSYS",
    ),
    "connects its pair of sockets": (
        "import socket\na, b = socket.socketpair()\na.connect('/run/systemd/notify')",
        "forbidden call SIGSYS",
    ),
    "connects in an event loop": (
        "import asyncio\nasyncio.run(asyncio.open_connection('127.0.0.1', 1))",
        "forbidden call SIGSYS",
    ),
    "starts a command in an event loop": (
        "import asyncio\nasyncio.run(asyncio.create_subprocess_exec('true'))",
        "forbidden call SIGSYS",
    ),
    "fetches": (
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1/')",
        "forbidden call SIGSYS",
    ),
    "signals its parent": ("import os\nos.kill(os.getppid(), 15)", "forbidden call SIGSYS"),
    "has its parent signalled": (
        "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
        "failed PermissionError",
    ),
    "lifts its limits": (
        "import resource\nresource.prlimit(0, resource.RLIMIT_CPU, (60, 60))",
        "failed PermissionError",
    ),
    "lowers its parent's": (
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (1, 1))",
        "failed PermissionError",
    ),
    "reads its parent's environment": (
        "import os\nopen(f'/proc/{os.getppid()}/environ').read()",
        "failed PermissionError",
    ),
    "lists the processes": ("import os\nos.listdir('/proc')", "failed PermissionError"),
    "reads accounts": ("open('/etc/passwd').read()", "failed PermissionError"),
    "makes a folder": ("import os\nos.mkdir('deep')", "failed PermissionError"),
    "changes a mode": ("import os\nos.chmod('.', 0)", "failed PermissionError"),
    "links outward": ("import os\nos.symlink('/etc', 'etc')", "failed PermissionError"),
    "fills the disk": (
        (
            "number = 0\nwhile True:\n    open(str(number), 'wb').write(b'x' * (3 << 20))\n"
            "    number += 1"
        ),
        "out of scratch space",
    ),
    "makes files without end": (
        "number = 0\nwhile True:\n    open(str(number), 'wb').close()\n    number += 1",
        "out of scratch space",
    ),
    "makes a large file": (
        (
            "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "open('a', 'wb').write(b'x' * (99 << 20))"
        ),
        "failed OSError",
    ),
}
"""By what each does: the program, and how it ends; None where that is the machine's choice."""

ENDLESS = {
    "sleeps": ("import time\ntime.sleep(999)", "out of time"),
    "says that it ran and sleeps": (
        (
            "import os, time\nfor file in range(3, 9):\n"
            "    try:\n        os.write(file, b'ran\\n')\n    except OSError:\n        pass\n"
            "time.sleep(999)"
        ),
        "out of time",
    ),
    "talks without end": (FLOOD.format(b"x" * 4096), "flooded"),
    "says lines without end": (FLOOD.format(b"x\n" * 2048), "flooded"),
    "says that it ran without end": (FLOOD.format(b"ran\n" * 1024), "flooded"),
    "goes on in a thread when it has ended": (
        (
            "import ctypes, threading, time\n"
            "threading.Thread(target=time.sleep, args=(999,)).start()\n"
            "ctypes.CDLL(None).syscall(60, 0)"
        ),
        "out of time",
    ),
}
"""They wait, or are waited for, so that no limit on the processor's time ends them."""
