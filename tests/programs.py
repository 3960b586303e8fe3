"""Programs that a model might write: harmless and hostile ones."""

from __future__ import annotations

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
        "'PYTHONHASHSEED', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS'}, dict(os.environ)"
    ),
    "has no file of its parent's open": "import os\nassert os.open(os.devnull, os.O_RDONLY) <= 8",
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
    "closes everything": ("import os\nos.closerange(0, 999)", "exited"),
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
    "starts a thread": (
        "import threading\nthreading.Thread(target=print).start()",
        "failed RuntimeError",
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
    "opens a pair of sockets": ("import socket\nsocket.socketpair()", "forbidden call SIGSYS"),
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
    "talks without end": (
        (
            "import os\nwhile True:\n    for file in range(3, 9):\n"
            "        try:\n            os.write(file, b'x' * 4096)\n        except OSError:\n"
            "            pass"
        ),
        "exited",
    ),
}
"""They wait, or are waited for, so that no limit on the processor's time ends them."""
