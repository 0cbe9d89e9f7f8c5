"""What this process is to the system: as which user it runs, and with whom it ends. Linux.

    root --(the NIC is open)--> become(): the user, without a capability and without a way back

Invariants:
- `no_new_privileges()` comes before the first thread: it holds for the thread that asks for it and those made later.
  The user and the groups are those of all threads: libc changes them together.
- The kernel forgets `end_with()` when the user changes, so it is called again after `become()`.

Standard library only: `end_with()` comes before the guard.
"""

from __future__ import annotations

import contextlib
import os

from .errors import ConfigurationError, NotPermittedError

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_NO_NEW_PRIVS = 38
SIGTERM = 15
MAX_ID = 0xFFFFFFFE  # the one above stands for "leave as it is"


class User:
    """uid, gid; `name` is "" where there is none: then the process is in no other group."""

    __slots__ = ("gid", "name", "uid")

    def __init__(self, uid: int, gid: int, name: str = "") -> None:
        self.uid = uid
        self.gid = gid
        self.name = name

    def __str__(self) -> str:
        return f"{self.name} (uid {self.uid})" if self.name else f"uid {self.uid}, gid {self.gid}"


def find_user(text: str) -> User:
    """The user that the text names: NAME, in the groups of that user, or UID:GID and nothing else.

    Raises ConfigurationError where there is none or it is root, NotPermittedError where this process cannot change to
    it: it is not root."""
    import pwd

    uid, colon, gid = text.partition(":")
    if colon:
        if not (_is_id(uid) and _is_id(gid)):
            raise ConfigurationError(f"[process] user is {text!r}: must be NAME or UID:GID, two numbers")
        user = User(int(uid), int(gid))
    else:
        try:
            entry = pwd.getpwnam(text)
        except (KeyError, ValueError):
            raise ConfigurationError(
                f"[process] user is {text!r}: there is no such user; create it (useradd --system), or give UID:GID"
            ) from None
        user = User(entry.pw_uid, entry.pw_gid, text)
    if user.uid == 0:
        raise ConfigurationError(f"[process] user is {text!r}, which is root: name a user without privileges")
    if os.geteuid() != 0:
        raise NotPermittedError(
            f"[process] user is {text!r}, and only root can change to a user: start as root, or leave this setting out"
        )
    return user


def no_new_privileges() -> None:
    """No program that this thread, or one made by it, ever executes has more privileges than it has then."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def become(user: User) -> None:
    """This process is that user's from here on. Raises NotPermittedError where it cannot be, or could be undone."""
    try:
        if user.name:
            os.initgroups(user.name, user.gid)
        else:
            os.setgroups([])
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as error:
        raise NotPermittedError(
            f"cannot change to user {user} ({error.strerror}): CAP_SETUID and CAP_SETGID are needed for it"
        ) from None
    changed = os.getresuid() == (user.uid,) * 3 and os.getresgid() == (user.gid,) * 3
    if not changed or _capable() or _can_be_root():
        raise NotPermittedError(
            f"privileges are not given up by changing to user {user}: see the secure bits (SECBIT_KEEP_CAPS, "
            f"SECBIT_NO_SETUID_FIXUP) with which this was started"
        )


def end_with(parent: int, number: int = SIGTERM) -> None:
    """This process gets SIGTERM, or the signal of this number, when its parent ends, however that ends; at once if that
    has happened already.

    `parent`: os.getppid() as early as it can be asked. It is the end of the parent's thread that counts, that which
    started this process: one that starts programs from a thread of its own has to keep that thread."""
    _prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def call_itself(name: str) -> None:
    """What lists of processes show, 15 characters of it; the command line stays."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode()[:15])


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID


def _prctl(option: int, value: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "prctl"):
        raise ConfigurationError("--user and --die-with-parent need Linux: leave them out here")
    arguments = [ctypes.c_ulong(number) for number in (value, 0, 0, 0)]
    if libc.prctl(option, *arguments) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise NotPermittedError(f"prctl({option}) is refused ({reason}): see the system call filter of this process")


def _capable() -> bool:
    """Whether this process has a capability, or that cannot be seen."""
    try:
        with open("/proc/self/status", "rb") as file:
            return not any(line.startswith(b"CapPrm:") and int(line.split()[1], 16) == 0 for line in file)
    except OSError:
        return True


def _can_be_root() -> bool:
    try:
        os.setuid(0)
    except PermissionError:
        return False
    return True
