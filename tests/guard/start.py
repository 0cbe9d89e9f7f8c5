"""One start of a program that takes the guard, for the tests: `start.py PIDFILE [NIC ...] [options]`.

Held: prints "held", then obeys lines on standard input and answers each, last with "done":
  check        a self-check; what it found, as JSON
  drop         gives up root for good
  exit         ends without a release
  fork         makes a worker that does nothing; its pid
  lose WHAT    closes the descriptor of the "pidfile" or the "nic" behind the guard's back; its number is another file's
  read         opens and closes its own pidfile
  release      twice
  unlock       takes the lock of the pidfile off, as any process with that descriptor can
Refused: the refusal on standard error, a report of this process on standard output as JSON, the exit code.

With --many N nothing is taken at first; each line "go PIDFILE" lets N processes start at once, the pidfile's {} being
the number of the start. Answers with a list of [pid, exit code, pid of the holder that it names] as JSON; exit code
null is the one that holds, until it is killed.
"""

import argparse
import os
import sys

# As the program's own command line does, and nothing else of it.
from http_capture import guard
from http_capture.guard import holder, interface, pidfile, status  # noqa: F401  (a change of user hides the sources)

"".encode("utf-16-be")  # and the codecs

GUARD_MODULES = set(sys.modules)

import ctypes  # noqa: E402
import fcntl  # noqa: E402  (not all of these does the guard need)
import json  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402
import struct  # noqa: E402

PR_SET_PDEATHSIG = 1
prctl = ctypes.CDLL(None).prctl


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pidfile")
    parser.add_argument("nics", nargs="*")
    parser.add_argument("--uid", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--many", type=int)
    options = parser.parse_args()
    if options.many:
        many(options.many, options.nics)
        return
    if options.uid is not None:
        os.setgroups([])
        os.setgid(options.uid)
        os.setuid(options.uid)
    command = ["http-capture", "--iface", ",".join(options.nics), "--pidfile", options.pidfile]
    try:
        held = guard.acquire(
            options.pidfile, options.nics, instance="i-1", command=command, interface_lock=bool(options.nics)
        )
    except guard.GuardError as error:
        print(guard.refusal_json(error) if options.json else guard.refusal(error), file=sys.stderr)
        fds = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _open(fd)]
        print(json.dumps({"fds": fds, "modules": sorted(GUARD_MODULES)}))
        sys.exit(error.exit_code)
    print("held", flush=True)
    for line in sys.stdin:
        match line.split():
            case ["check"]:
                print(json.dumps(check(held)))
            case ["drop"]:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            case ["fork"]:
                print(worker(held))
            case ["lose", what]:
                fd = held._file._fd if what == "pidfile" else held._interfaces._locks[0]._fd
                os.dup2(os.open("/dev/null", os.O_RDONLY), fd)
            case ["unlock"]:
                unlock = struct.pack("@hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0)
                fcntl.fcntl(held._file._fd, fcntl.F_OFD_SETLK, unlock)
            case ["release"]:
                held.release()
                held.release()
            case ["read"]:
                with open(options.pidfile) as file:
                    file.read()
            case ["exit"]:
                sys.exit(0)
        print("done", flush=True)


def check(held: guard.Guard) -> dict[str, object]:
    try:
        lines = held.check()
    except guard.GuardLost as error:
        return {"lost": str(error), "exit": error.exit_code}
    return {"lines": lines, "checks": held.checks, "repairs": held.repairs, "faults": held.faults}


def worker(held: guard.Guard) -> int:
    """A child that lives until it is killed, and in which a self-check does nothing."""
    pid = os.fork()
    if pid == 0:
        assert held.check() == []
        assert held.checks == 0
        until_the_tests_end()
    return pid


def until_the_tests_end() -> None:
    """Standard output is a pipe to them."""
    reader = select.poll()
    reader.register(1, 0)
    reader.poll()
    os._exit(0)


def many(count: int, nics: list[str]) -> None:
    print("held", flush=True)
    for line in sys.stdin:
        path = line.split()[1]
        barrier, let_go = os.pipe()
        answers, tell = os.pipe()
        running = {pid for number in range(count) if (pid := one(path.format(number), nics, barrier, let_go, tell))}
        os.close(tell)
        os.close(barrier)
        os.close(let_go)
        told = []
        with open(answers) as file:
            for _ in range(count):
                told.append(json.loads(file.readline()))
                if told[-1][1] is not None:
                    os.waitpid(told[-1][0], 0)
                    running.remove(told[-1][0])
        print(json.dumps(told), flush=True)
        print("done", flush=True)
        sys.stdin.readline()
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        print("null\ndone", flush=True)


def one(path: str, nics: list[str], barrier: int, let_go: int, tell: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    answer: list[object] = [os.getpid(), None, None]
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(let_go)
        os.read(barrier, 1)
        guard.acquire(path, nics, instance="i", command=["http-capture"], interface_lock=bool(nics))
    except guard.AlreadyRunning as error:
        answer[1:] = [error.exit_code, error.holder.pid or error.holder.describe()]
    except BaseException as error:
        answer[1:] = [1, repr(error)]
    os.write(tell, f"{json.dumps(answer)}\n".encode())
    if answer[1] is None:
        until_the_tests_end()
    os._exit(0)


def _open(fd: str) -> bool:
    try:
        os.fstat(int(fd))
    except OSError:
        return False
    return True


main()
