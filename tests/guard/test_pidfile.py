"""The pidfile: what is refused as one, how it is locked, what is written into it."""

import contextlib
import errno
import fcntl
import os
import signal
import socket
import stat
import time

import pytest
from http_capture.guard import GuardError
from http_capture.guard import pidfile as module
from http_capture.guard.pidfile import Held, Pidfile, one_line, parse, query, quote


@pytest.fixture
def path(tmp_path):
    return tmp_path / "http-capture.pid"


@contextlib.contextmanager
def taken(path):
    file = Pidfile.take(str(path))
    try:
        yield file
    finally:
        file.close()


def write(file, command=("http-capture",)):
    file.write("eth1", "i-1", "by hand", command)


def link(path):
    path.with_name("target").write_text("kept")
    path.symlink_to(path.with_name("target"))


def hard_link(path):
    path.write_text("kept")
    path.chmod(0o600)
    os.link(path, path.with_name("second"))


def foreign(path):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    path.write_text("kept")
    path.chmod(0o600)
    os.chown(path, 65534, 65534)


def mode(bits):
    def make(path):
        path.write_text("kept")
        path.chmod(bits)

    return make


def device(path):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


def unix_socket(path):
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)  # the path may be longer than a socket's may be
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


REFUSED = [
    (link, "is a symbolic link"),
    (lambda path: path.symlink_to(path.with_name("target")), "is a symbolic link"),
    (hard_link, "has 2 names"),
    (os.mkfifo, "is a FIFO"),
    (device, "is a device"),
    (unix_socket, "is a socket"),
    (os.mkdir, "is a folder"),
    (mode(0o666), "others may write it (mode 0666); chmod 600"),
    (mode(0o620), "others may write it (mode 0620)"),
    (foreign, "belongs to uid 65534"),
    (lambda path: path.parent.rmdir(), "its folder does not exist; mkdir "),
]


def tree(folder):
    """Everything in the folder with its content: nothing else is to be touched."""
    return {
        each.name: (each.lstat().st_mode, each.lstat().st_uid, each.read_text() if each.is_file() else "")
        for each in (folder.iterdir() if folder.exists() else ())
    }


@pytest.mark.parametrize(("make", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_what_is_no_pidfile_is_refused(start, path, make, reason):
    make(path)
    before = tree(path.parent)
    refused = start(path).wait()
    assert refused.exit_code == 73
    assert refused.error.count("\n") == 1
    assert refused.error.startswith(f"http-capture: REFUSED (exit 73): pidfile {path}: ")
    assert reason in refused.error
    assert "--pidfile" in refused.error
    assert tree(path.parent) == before


@pytest.mark.alone
@pytest.mark.parametrize("make", [make for make, _ in REFUSED], ids=[reason for _, reason in REFUSED])
def test_refusing_does_not_wait(path, make):
    make(path)
    began = time.monotonic()
    with pytest.raises(GuardError):
        Pidfile.take(str(path))
    assert time.monotonic() - began < 1


def test_a_lease_is_not_waited_for(start, path):
    """Without O_NONBLOCK, open() waits up to 45 s for the one who has a lease to give it up."""
    path.touch(0o600)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        refused = start(path).wait()
    except OSError:
        pytest.skip("no leases on this file system")
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)
    assert refused.exit_code == 73
    assert "lease" in refused.error
    assert refused.seconds < 20


def test_a_file_as_its_folder(path):
    path.write_text("kept")
    with pytest.raises(GuardError, match="is not a folder"):
        Pidfile.take(f"{path}/http-capture.pid")


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 300, "new\nline/x", "\udcff/x"])
def test_odd_names_are_one_line(path, name):
    with pytest.raises(GuardError) as caught:
        Pidfile.take(f"{path.parent}/{name}")
    assert str(caught.value).isprintable()


@pytest.mark.root
def test_no_permission(start, root, open_folder):
    path = open_folder / "http-capture.pid"
    open_folder.chmod(0o755)
    refused = start(path, "--uid", 65534).wait()
    assert refused.exit_code == 73
    assert "not permitted for uid 65534; start as root" in refused.error
    path.write_text("kept")
    path.chmod(0o600)
    assert start(path, "--uid", 65534).wait().exit_code == 73
    assert path.read_text() == "kept"


def in_tmpfs(folder, options, then=":"):
    """A command prefix: a tmpfs on the folder, in a mount namespace of its own."""
    return ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o {options} none {folder} && {then} && exec "$@"', "sh"]


@pytest.mark.root
@pytest.mark.parametrize("exists", [True, False])
def test_a_read_only_file_system(start, root, path, exists):
    make = f"touch {path}" if exists else ":"
    then = f"{make} && mount -o remount,ro {path.parent}"
    refused = start(path, under=in_tmpfs(path.parent, "size=64k", then)).wait()
    assert refused.exit_code == 73
    assert "its file system is read-only" in refused.error
    assert refused.error.count("\n") == 1


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "fill"),
    [
        ("size=64k", "! head -c 1000000 /dev/zero 2>&- > {folder}/filler"),
        ("size=64k", "printf '' > {path} && ! head -c 1000000 /dev/zero 2>&- > {folder}/filler"),
        ("size=64k,nr_inodes=2", "touch {folder}/filler"),
    ],
)
def test_a_full_disk(start, root, path, options, fill):
    then = fill.format(folder=path.parent, path=path)
    refused = start(path, under=in_tmpfs(path.parent, options, then)).wait()
    assert refused.exit_code == 73
    assert "its file system is full; free space" in refused.error
    assert refused.error.count("\n") == 1


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs"])
def test_a_network_file_system_is_refused(path, monkeypatch, kind):
    monkeypatch.setattr(module, "_file_system", lambda fd, status: (kind, b"00:2d:7"))
    with pytest.raises(GuardError, match=rf"network file system \({kind}\)"):
        Pidfile.take(str(path))


def test_a_file_system_that_cannot_be_seen_is_refused(path, monkeypatch):
    monkeypatch.setattr(module, "_file_system", lambda fd, status: ("", b"00:2d:7"))
    monkeypatch.setattr(module.os, "major", lambda device: 0)
    with pytest.raises(GuardError, match="cannot be seen"):
        Pidfile.take(str(path))


def test_the_file_system_of_a_file(path):
    path.touch()
    with open("/proc/self/mountinfo") as mounts:
        kinds = {line.split(" - ")[1].split()[0] for line in mounts}
    with open(path) as file:
        status = os.fstat(file.fileno())
        kind, inode = module._file_system(file.fileno(), status)
        assert kind in kinds
        assert inode.endswith(b":%d" % status.st_ino)


def test_the_second_is_held_off(path):
    with taken(path) as first:
        write(first)
        with pytest.raises(Held) as held:
            Pidfile.take(str(path))
        there = held.value.query
        assert there.identity["pid"] == str(os.getpid())
        assert (there.locked, there.first, there.ofd, there.blocker) == (True, True, True, os.getpid())
        with open("/proc/locks", "rb") as locks:
            assert any(there.inode in line and b"OFDLCK" in line for line in locks)


def test_a_query_touches_nothing(path, start):
    assert query(str(path)) is None
    path.write_text("12\n")
    path.chmod(0o644)
    there = query(str(path))
    assert (there.locked, there.first, there.ofd, there.blocker) == (False, False, False, -1)
    assert there.identity == {"pid": "12"}
    holder = start(path).wait()
    before = path.stat()
    there = query(str(path))
    assert (there.locked, there.first, there.ofd, there.blocker) == (True, True, True, holder.pid)
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns, after.st_size) == (
        before.st_mtime_ns, before.st_ctime_ns, before.st_size,
    )  # fmt: skip
    holder.kill()
    assert not query(str(path)).locked
    assert query(str(path)).identity["pid"] == str(holder.pid)


@pytest.mark.root
def test_a_query_needs_to_read_only(start, root, open_folder, child):
    path = open_folder / "http-capture.pid"
    holder = start(path).wait()
    path.chmod(0o644)

    def ask():
        assert query(str(path)).blocker == holder.pid

    child(ask, uid=65534)


@pytest.mark.parametrize("make", [os.mkfifo, link, device, os.mkdir])
def test_a_query_of_what_is_no_pidfile(path, make):
    make(path)
    with pytest.raises(GuardError, match="not a regular file"):
        query(str(path))


@pytest.mark.root
@pytest.mark.parametrize(("first", "length"), [(0, 1), (0, 0), (1, 0), (5, 1)])
def test_a_posix_lock_of_another_process_refuses_and_is_named(path, child, root, first, length):
    """On byte 0, on the rest, on both: the first remedy locks all, another program what it likes."""
    path.touch(0o600)

    def lock():
        fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX, length, first)

    pid = child(lock)
    with pytest.raises(Held) as held:
        Pidfile.take(str(path))
    for there in (held.value.query, query(str(path))):
        assert (there.locked, there.first, there.ofd, there.blocker) == (True, first == 0, False, pid)
    child.kill(pid)
    with taken(path):
        pass


def test_the_lock_outlives_other_descriptors_of_the_file(path):
    with taken(path):
        path.read_bytes()
        with pytest.raises(Held):
            Pidfile.take(str(path))


def test_an_error_of_the_lock_is_no_permission_to_run(path, monkeypatch):
    def refuse(fd, command, argument=0):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "fcntl", refuse)
    with pytest.raises(GuardError, match="cannot be locked"):
        Pidfile.take(str(path))


def replacing(monkeypatch, path, times, leave):
    """Between open and lock, the file is removed or replaced, this many times."""
    count = 0

    def lock(fd, command, argument=0):
        nonlocal count
        if command == fcntl.F_OFD_SETLK and count < times:
            count += 1
            path.unlink()
            if leave:
                path.touch(0o600)
        return real(fd, command, argument)

    real = fcntl.fcntl
    monkeypatch.setattr(module.fcntl, "fcntl", lock)


@pytest.mark.parametrize("leave", [True, False])
@pytest.mark.parametrize("times", [1, 49])
def test_a_file_replaced_before_it_was_locked_is_left(path, monkeypatch, times, leave):
    replacing(monkeypatch, path, times, leave)
    with taken(path) as file:
        write(file)
        assert path.read_text().startswith(f"{os.getpid()}\n")


def test_a_file_that_is_replaced_for_ever(path, monkeypatch):
    replacing(monkeypatch, path, 1000, True)
    with pytest.raises(GuardError, match="again and again"):
        Pidfile.take(str(path))


@pytest.mark.parametrize(("mode", "left"), [(0o644, 0o600), (0o400, 0o400), (0o600, 0o600)])
def test_a_file_that_others_can_read_is_theirs_no_more(path, mode, left):
    """Who can open it can lock it, and so block each start."""
    path.touch(mode)
    path.chmod(mode)
    with taken(path) as file:
        write(file)
    assert stat.S_IMODE(path.stat().st_mode) == left


def test_opening_does_not_truncate(path):
    path.write_text("1\nkept")
    path.chmod(0o600)
    with taken(path):
        assert path.read_text() == "1\nkept"


@pytest.mark.parametrize("text", ["kept", "[source]\niface = []\n", "\x7fELF", "pid: 12\n", "12 monkeys\n", "\xb2"])
def test_a_file_that_is_no_pidfile_is_left_as_it_is(path, text):
    """Named by mistake: the settings, for one."""
    path.write_text(text)
    path.chmod(0o644)
    with taken(path) as file, pytest.raises(GuardError, match=r"no pidfile's .*left as it is; remove it if"):
        write(file)
    assert path.read_text() == text
    assert path.stat().st_mode & 0o777 == 0o644
    assert query(str(path)).locked is False


@pytest.mark.parametrize("text", ["", "\n", "\0" * 4096, "4000000", "12\nboot: x\n", " 12 \n"])
def test_what_a_pidfile_may_be_left_as(path, text):
    path.write_text(text)
    path.chmod(0o600)
    with taken(path) as file:
        assert path.read_text() == text
        write(file)
        assert path.read_text().startswith(f"{os.getpid()}\nboot: ")


def test_a_reader_never_finds_a_held_file_empty(path, monkeypatch):
    path.write_text("4000000\n" + "x" * 5000)
    path.chmod(0o600)
    seen = []
    for name in ("pwrite", "ftruncate"):
        real = getattr(os, name)

        def look(*arguments, real=real):
            seen.append(path.read_text())
            real_result = real(*arguments)
            seen.append(path.read_text())
            return real_result

        monkeypatch.setattr(module.os, name, look)
    with taken(path) as file:
        write(file)
    assert len(seen) == 4
    assert all(seen)
    assert [parse(text.encode())["pid"] for text in seen[1:]] == [str(os.getpid())] * 3
    assert "x" not in seen[-1].partition("command")[0].replace("boot", "")


@pytest.mark.parametrize("failure", ["short", errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_text_that_cannot_be_written(path, monkeypatch, failure):
    path.write_text("1\nboot: stale\n")
    path.chmod(0o600)

    def pwrite(fd, text, offset):
        if failure == "short":
            return len(text) - 1
        raise OSError(failure, os.strerror(failure))

    monkeypatch.setattr(module.os, "pwrite", pwrite)
    with taken(path) as file, pytest.raises(GuardError) as caught:
        write(file)
    assert str(path) in str(caught.value)
    assert "--pidfile" in str(caught.value)
    assert path.read_bytes() == b""


def test_the_text_is_bounded_and_of_one_line_each(path):
    hostile = ["http-capture", "a\nboot: forged", "\x1b[2J", "\udcff", "it's", "x" * 100000]
    with taken(path) as file:
        file.write("eth1," * 1000, "i\n" * 1000, "by\rhand" * 1000, hostile)
    text = path.read_bytes()
    assert len(text) < module.TEXT_BYTES
    assert text.count(b"\n") == 7
    found = parse(text)
    assert found["boot"] == module.boot_id()
    assert found["command"].startswith(r"http-capture 'a\nboot: forged' '\x1b[2J' '\udcff' ")
    assert found["command"].endswith("...")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", {}),
        (b"12\n", {"pid": "12"}),
        (b"12", {"pid": "12"}),
        (b"-1\n", {}),
        ("\u0661\n".encode(), {}),
        (b"\xff\xfe\x00\n\n\n: :\n", {"": ":"}),
        (b"12\nboot: a\nboot: b\ncommand: c\nstart: 9\n", {"pid": "12", "boot": "a", "command": "c"}),
    ],
)
def test_parse(text, found):
    assert parse(text) == found


def test_close_twice(path):
    with taken(path) as file:
        write(file)
        file.empty()
        file.close()
        file.empty()
        file.close()
    assert path.read_bytes() == b""
    with taken(path):
        pass


@pytest.mark.parametrize(
    ("word", "quoted"),
    [("--iface", "--iface"), ("", "''"), ("a b", "'a b'"), ("it's", "'it'\"'\"'s'"), ("$(x)", "'$(x)'")],
)
def test_quote(word, quoted):
    assert quote(word) == quoted


def test_one_line():
    assert one_line("a\nb\x1b\u202e") == r"a\nb\x1b\u202e"
    assert one_line("é" * 100, 20) == "é" * 8 + "..."
    assert len(one_line("\x00" * 1000, 100)) == 100
