"""Takes the steps of the guard out, one at a time: for each, a test must turn red. `make mutations`; needs root.

    old text there once in every file? --no--> 2
      -> the tests on a whole copy of the package: all green? --no--> 1 (skipped: 77)
      -> per mutation: a copy of the package, the one change, its test: red -> caught, all else -> SURVIVED
      -> 0 all caught; 1 one survived

Invariants:
- Nothing is changed in the tree: each run has a copy of its own, which the test imports, and a folder of its own for
  all that the test makes.
- Caught is: pytest ends with 1, and names a test that failed. Not one that cannot be collected or takes too long.
"""

import argparse
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

TESTS = pathlib.Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
PACKAGES = ("capture", "config", "guard")
SUFFIXES = {".py", ".pxd", ".toml"}
AT_ONCE = 2
WHOLE_SECONDS = 300
MUTANT_SECONDS = 90  # more than any limit that is inside the tests named below
END_SECONDS = 20


class Mutation(NamedTuple):
    """`old`, which is in the file once, becomes `new`; `test` must fail then."""

    name: str
    file: str
    old: str
    new: str
    test: str


PIDFILE = "guard/pidfile.py"
INTERFACE = "guard/interface.py"
GUARD = "guard/__init__.py"
# fmt: off
MUTATIONS = [
    # Step 1: open
    Mutation(
        "O_NOFOLLOW dropped", PIDFILE,
        "os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK", "os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK",
        "guard/test_pidfile.py::test_what_is_no_pidfile_is_refused[is a symbolic link1]",
    ),
    Mutation(
        "O_NONBLOCK dropped", PIDFILE,
        "os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK", "os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW",
        "guard/test_steps.py::test_a_lease_is_not_waited_for",
    ),
    Mutation(  # Python's own os.open() has O_CLOEXEC always
        "O_CLOEXEC taken off", PIDFILE,
        "        return above_standard(os.open(path, FLAGS, 0o600))",
        "        fd = above_standard(os.open(path, FLAGS, 0o600))\n        os.set_inheritable(fd, True)\n"
        "        return fd",
        "guard/test_guard.py::test_a_program_that_the_holder_starts_has_no_lock",
    ),
    Mutation(
        "O_CLOEXEC lost when moved up", PIDFILE, "fcntl.F_DUPFD_CLOEXEC", "fcntl.F_DUPFD",
        "guard/test_steps.py::test_no_program_gets_a_lock_that_was_moved_up",
    ),
    Mutation(
        "not moved above the standard streams", PIDFILE, "    if fd > 2:", "    if fd >= 0:",
        "guard/test_guard.py::test_standard_streams_that_are_closed_are_not_taken",
    ),
    Mutation(
        "O_TRUNC added", PIDFILE, "FLAGS = os.O_RDWR |", "FLAGS = os.O_TRUNC | os.O_RDWR |",
        "guard/test_guard.py::test_a_second_start_is_refused",
    ),
    Mutation(
        "others may go on reading it", PIDFILE, "if os.fstat(self._fd).st_mode & 0o077:", "if False:",
        "guard/test_pidfile.py::test_a_file_that_others_can_read_is_theirs_no_more[420-384]",
    ),
    Mutation(
        "a device is opened by a start", PIDFILE, "if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):", "if False:",
        "guard/test_steps.py::test_a_device_is_not_opened[take]",
    ),
    # Step 2: what is no pidfile
    Mutation(
        "with any text", PIDFILE, "if text and not first.isdigit():", "if False:",
        "guard/test_pidfile.py::test_a_file_that_is_no_pidfile_is_left_as_it_is[kept]",
    ),
    Mutation(
        "not only regular files", PIDFILE,
        "    status = os.fstat(fd)\n    _regular(path, status.st_mode)\n", "    status = os.fstat(fd)\n",
        "guard/test_pidfile.py::test_what_is_no_pidfile_is_refused[is a FIFO]",
    ),
    Mutation(
        "of any owner", PIDFILE, "if not trusted(status.st_uid):", "if False:",
        "guard/test_pidfile.py::test_what_is_no_pidfile_is_refused[belongs to uid 65534]",
    ),
    Mutation(
        "of any mode", PIDFILE, "if status.st_mode & 0o022:", "if False:",
        "guard/test_pidfile.py::test_what_is_no_pidfile_is_refused[others may write it (mode 0666); chmod 600]",
    ),
    Mutation(
        "written by its group", PIDFILE, "if status.st_mode & 0o022:", "if status.st_mode & 0o002:",
        "guard/test_pidfile.py::test_what_is_no_pidfile_is_refused[others may write it (mode 0620)]",
    ),
    Mutation(
        "of many names", PIDFILE, "if status.st_nlink > 1:", "if False:",
        "guard/test_pidfile.py::test_what_is_no_pidfile_is_refused[has 2 names]",
    ),
    Mutation(
        "on a network file system", PIDFILE, 'if kind in REMOTE or kind.startswith("fuse."):', "if False:",
        "guard/test_pidfile.py::test_a_network_file_system_is_refused[nfs4]",
    ),
    Mutation(
        "on a FUSE file system", PIDFILE, 'if kind in REMOTE or kind.startswith("fuse."):', "if kind in REMOTE:",
        "guard/test_pidfile.py::test_a_network_file_system_is_refused[fuse.sshfs]",
    ),
    Mutation(
        "on a file system that cannot be seen", PIDFILE, "if not kind and os.major(status.st_dev) == 0:", "if False:",
        "guard/test_pidfile.py::test_a_file_system_that_cannot_be_seen_is_refused",
    ),
    # Step 3: the lock
    Mutation(
        "the beacon is all", PIDFILE, "if not _lock(path, fd, fcntl.F_OFD_SETLK, LOCK):", "if False:",
        "guard/test_guard.py::test_the_holder_reads_its_own_pidfile",
    ),
    Mutation(
        "POSIX locks only", PIDFILE, "_lock(path, fd, fcntl.F_OFD_SETLK, LOCK)", "_lock(path, fd, fcntl.F_SETLK, LOCK)",
        "guard/test_guard.py::test_the_holder_reads_its_own_pidfile",
    ),
    Mutation(
        "flock instead", PIDFILE,
        "        fcntl.fcntl(fd, command, flock)\n",
        "        if command == fcntl.F_OFD_SETLK:\n            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "        else:\n            fcntl.fcntl(fd, command, flock)\n",
        "guard/test_first_remedy.py::test_it_is_second_when_byte_0_is_all_that_is_left",
    ),
    Mutation(
        "the lock is waited for", PIDFILE,
        "_lock(path, fd, fcntl.F_OFD_SETLK, LOCK)", "_lock(path, fd, fcntl.F_OFD_SETLKW, LOCK)",
        "guard/test_steps.py::test_the_lock_is_not_waited_for",
    ),
    Mutation(
        "no locks there, so run without", PIDFILE,
        '        raise fault(path, f"cannot be locked ({os.strerror(error.errno or 0)})", ELSEWHERE) from None\n', "",
        "guard/test_pidfile.py::test_an_error_of_the_lock_is_no_permission_to_run",
    ),
    # Step 4: the path and the locked file
    Mutation(
        "not compared with the path", PIDFILE, "if _in_place(path, os.fstat(fd)):", "if True:",
        "guard/test_pidfile.py::test_a_file_replaced_before_it_was_locked_is_left[1-True]",
    ),
    Mutation(
        "the inode's number is enough", PIDFILE,
        "os.path.samestat(os.stat(path, follow_symlinks=False), file)",
        "os.stat(path, follow_symlinks=False).st_ino == file.st_ino",
        "guard/test_steps.py::test_a_file_system_that_was_mounted_over",
    ),
    Mutation(
        "a link to it is as good", PIDFILE, "follow_symlinks=False", "follow_symlinks=True",
        "guard/test_steps.py::test_a_link_to_the_file_that_was_moved",
    ),
    Mutation(
        "not begun anew", PIDFILE, "ATTEMPTS = 50", "ATTEMPTS = 1",
        "guard/test_pidfile.py::test_a_file_replaced_before_it_was_locked_is_left[1-False]",
    ),
    Mutation(
        "begun anew without an end", PIDFILE, "ATTEMPTS = 50", "ATTEMPTS = 1 << 60",
        "guard/test_pidfile.py::test_a_file_that_is_replaced_for_ever",
    ),
    # Step 5: the beacon
    Mutation(
        "no beacon", PIDFILE, "if not _lock(path, fd, fcntl.F_SETLK, BEACON):", "if False:",
        "guard/test_guard.py::test_the_kernel_names_a_holder_that_may_not_be_looked_into[]",
    ),
    Mutation(
        "a beacon that names nobody", PIDFILE,
        "_lock(path, fd, fcntl.F_SETLK, BEACON)", "_lock(path, fd, fcntl.F_OFD_SETLK, BEACON)",
        "guard/test_guard.py::test_the_kernel_names_a_holder_that_may_not_be_looked_into[]",
    ),
    Mutation(
        "a beacon of one byte", PIDFILE, "BEACON = _flock(1, 0)", "BEACON = _flock(1, 1)",
        "guard/test_pidfile.py::test_a_posix_lock_of_another_process_refuses_and_is_named[5-1]",
    ),
    # Step 6: the NIC
    Mutation(
        "no lock of the NIC", GUARD, "nics.resolve(interfaces) if interface_lock else {}", "{}",
        "guard/test_guard.py::test_another_pidfile_on_the_same_nic",
    ),
    Mutation(
        "bound and not listening", INTERFACE, "                bound.listen(QUEUE)\n", "",
        "guard/test_interface.py::test_one_holds_it",
    ),
    Mutation(
        "locked by its name", INTERFACE,
        "0 if name == ANY else socket.if_nametoindex(name), name)",
        '0 if name == ANY else socket.if_nametoindex(name) and int.from_bytes(name.encode(), "big"), name)',
        "guard/test_interface.py::test_a_renamed_nic_is_the_same",
    ),
    Mutation(
        "`any` beside a named one", INTERFACE, "if 0 in wanted else {0: ANY}", "if 0 in wanted else {}",
        "guard/test_interface.py::test_any_excludes_all",
    ),
    Mutation(
        "a named one beside `any`", INTERFACE, "dict(socket.if_nameindex()) if 0 in wanted", "{} if 0 in wanted",
        "guard/test_interface.py::test_any_excludes_all",
    ),
    Mutation(
        "looked for `any` before it is taken", INTERFACE,
        """\
            for index in sorted(wanted):
                self._locks.append(_Lock.take(index, wanted[index]))
            if not wanted:
                return
            others = dict(socket.if_nameindex()) if 0 in wanted else {0: ANY}
            for index, name in others.items():
                if index not in wanted and (peer := probe(index)) is not None:
                    raise Held(index, name, peer)
""",
        """\
            others = dict(socket.if_nameindex()) if 0 in wanted else {0: ANY}
            for index, name in others.items():
                if index not in wanted and (peer := probe(index)) is not None:
                    raise Held(index, name, peer)
            for index in sorted(wanted):
                self._locks.append(_Lock.take(index, wanted[index]))
""",
        "guard/test_steps.py::test_any_and_one_at_the_same_time[eth1-any]",
    ),
    Mutation(
        "some of several are kept", INTERFACE,
        "            self.release()\n            if isinstance", "            if isinstance",
        "guard/test_interface.py::test_several_or_none",
    ),
    Mutation(
        "taken in any order", INTERFACE, "for index in sorted(wanted):", "for index in wanted:",
        "guard/test_interface.py::test_they_are_taken_in_the_order_of_their_index",
    ),
    Mutation(
        "a connect that waits", INTERFACE,
        "socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as looking", "socket.SOCK_STREAM) as looking",
        "guard/test_steps.py::test_a_look_at_a_full_queue_does_not_wait",
    ),
    Mutation(
        "a full queue is nobody", INTERFACE, "return Peer()  # a full queue", "return None  # a full queue",
        "guard/test_steps.py::test_a_look_at_a_full_queue_does_not_wait",
    ),
    Mutation(
        "a squatter is a copy", GUARD, "if uid is not None and not trusted(uid):", "if False:",
        "guard/test_interface.py::test_a_squatter_of_another_user[True]",
    ),
    Mutation(
        "a silent squatter is a copy", GUARD,
        "error.peer.uid if error.peer.listening else holder.uid", "error.peer.uid",
        "guard/test_interface.py::test_a_squatter_of_another_user[False]",
    ),
    # Step 7: the text
    Mutation(
        "written before it is locked", PIDFILE,
        "                _check(path, fd)\n",
        '                _check(path, fd)\n                os.pwrite(fd, b"%d\\n" % os.getpid(), 0)\n',
        "guard/test_guard.py::test_a_second_start_is_refused",
    ),
    Mutation(
        "written before the NIC is locked", GUARD,
        """\
        locks.take(wanted)
        file.write(",".join(interfaces), instance, str(launcher), command)
""",
        """\
        file.write(",".join(interfaces), instance, str(launcher), command)
        locks.take(wanted)
""",
        "guard/test_guard.py::test_another_pidfile_on_the_same_nic",
    ),
    Mutation(
        "emptied before it is written", PIDFILE,
        "        if os.pwrite(self._fd, self._text, 0)",
        "        os.ftruncate(self._fd, 0)\n        if os.pwrite(self._fd, self._text, 0)",
        "guard/test_pidfile.py::test_a_reader_never_finds_a_held_file_empty",
    ),
    Mutation(
        "not cut to its length", PIDFILE, "        os.ftruncate(self._fd, len(self._text))\n", "",
        "guard/test_guard.py::test_stale_text_that_names_another_process",
    ),
    Mutation(
        "its length is not checked", PIDFILE,
        "if os.pwrite(self._fd, self._text, 0) != len(self._text):", "if os.pwrite(self._fd, self._text, 0) < 0:",
        "guard/test_steps.py::test_a_text_that_is_cut_short[long]",
    ),
    Mutation(
        "a full disk is nothing", PIDFILE,
        "            self.empty()\n            raise _failed(self.path, error) from None\n",
        "            self.empty()\n",
        "guard/test_pidfile.py::test_a_full_disk",
    ),
    Mutation(
        "a part of it is left", PIDFILE,
        "            self.empty()\n            raise _failed(self.path, error) from None\n",
        "            raise _failed(self.path, error) from None\n",
        "guard/test_steps.py::test_a_text_that_is_cut_short",
    ),
    Mutation(
        "more than a line each", PIDFILE, "{one_line(instance, 200)}", "{instance}",
        "guard/test_pidfile.py::test_the_text_is_bounded_and_of_one_line_each",
    ),
    # Step 8: the self-check
    Mutation(
        "the file is not checked", GUARD, "        self._file.check(found, alone=not self.interface_lock)\n", "",
        "guard/test_check.py::test_the_beacon_is_lit_again",
    ),
    Mutation(
        "the lock is not taken again", PIDFILE,
        "elif not _lock(self.path, self._fd, fcntl.F_OFD_SETLK, LOCK):", "elif False:",
        "guard/test_check.py::test_the_lock_was_taken_off",
    ),
    Mutation(
        "the beacon is not taken again", PIDFILE,
        "if not _lock(self.path, self._fd, fcntl.F_SETLK, BEACON):", "if False:",
        "guard/test_check.py::test_the_beacon_is_lit_again",
    ),
    Mutation(
        "the path is not checked", PIDFILE, "if _in_place(self.path, self._file):", "if True:",
        "guard/test_check.py::test_the_file_was_removed_or_replaced[None]",
    ),
    Mutation(
        "the text is not checked", PIDFILE,
        "                    self._mend_text(findings)\n", "                    pass\n",
        "guard/test_check.py::test_the_text_was_changed[1\\n]",
    ),
    Mutation(
        "longer text is not seen", PIDFILE, "len(self._text) + 1, 0)", "len(self._text), 0)",
        "guard/test_check.py::test_the_text_was_changed[append]",
    ),
    Mutation(
        "a closed descriptor is not seen", PIDFILE,
        "return self._fd >= 0 and os.path.samestat(os.fstat(self._fd), self._file)", "return self._fd >= 0",
        "guard/test_check.py::test_the_descriptor_of_the_file_was_closed",
    ),
    Mutation(
        "unlocked before another is locked", PIDFILE,
        "                new = Pidfile.take(self.path)\n",
        "                self.close()\n                new = Pidfile.take(self.path)\n",
        "guard/test_steps.py::test_what_is_locked_is_kept_until_another_is",
    ),
    Mutation(
        "the old file is kept open", PIDFILE,
        "                self.close()\n                self._fd, self._file = new._fd, new._file\n",
        "                self._fd, self._file = new._fd, new._file\n",
        "guard/test_check.py::test_the_file_was_removed_or_replaced[None]",
    ),
    Mutation(
        "the new file gets no text", PIDFILE,
        "                self._put()\n                return\n", "                return\n",
        "guard/test_check.py::test_the_file_was_removed_or_replaced[None]",
    ),
    Mutation(
        "made anew as the user that it became", PIDFILE, "if os.geteuid() != self._uid:", "if False:",
        "guard/test_check.py::test_after_privileges_were_dropped_in_a_folder_of_his",
    ),
    Mutation(
        "who locked the new file never runs", PIDFILE, "runs = alone and fit", "runs = False",
        "guard/test_check.py::test_it_is_lost_without_the_lock_of_a_nic",
    ),
    Mutation(
        "who locked the new file always runs", PIDFILE, "runs = alone and fit", "runs = True",
        "guard/test_check.py::test_one_of_this_kind_that_keeps_the_file_is_a_fault_as_it_cannot_have_the_nic",
    ),
    Mutation(
        "who locked a file of his runs", PIDFILE, "runs = alone and fit", "runs = alone",
        "guard/test_check.py::test_another_users_lock_does_not_end_the_holder[nics1-False]",
    ),
    Mutation(
        "the first remedy never runs", PIDFILE,
        "runs = there.first and (fit if uid is None else trusted(uid) and (alone or captures(there.blocker)))",
        "runs = False",
        "guard/test_first_remedy.py::test_it_has_taken_a_pidfile_that_replaced_the_holders",
    ),
    Mutation(
        "anybody's lock ends the holder", PIDFILE,
        "runs = there.first and (fit if uid is None else trusted(uid) and (alone or captures(there.blocker)))",
        "runs = there.first",
        "guard/test_check.py::test_another_users_lock_does_not_end_the_holder[nics0-True]",
    ),
    Mutation(
        "any daemon's lock ends the holder", PIDFILE,
        "trusted(uid) and (alone or captures(there.blocker)))", "trusted(uid))",
        "guard/test_check.py::test_the_pidfile_of_another_daemon_moved_over_it_does_not_end_the_holder",
    ),
    Mutation(
        "the NIC is not checked", GUARD, "        self._interfaces.check(found)\n", "",
        "guard/test_check.py::test_the_descriptor_of_the_nic_was_closed",
    ),
    Mutation(
        "a new index is not seen", INTERFACE,
        "index = lock.index if not lock.index or _name(lock.index) else _index(lock.name) or lock.index",
        "index = lock.index",
        "guard/test_check.py::test_a_nic_that_was_made_again",
    ),
    Mutation(
        "another name is another NIC", INTERFACE,
        "lock.index if not lock.index or _name(lock.index) else", "lock.index if not lock.index else",
        "guard/test_check.py::test_a_nic_that_got_another_name_is_kept",
    ),
    Mutation(
        "a closed lock of the NIC is not seen", INTERFACE,
        "if lock.is_open() and (index == lock.index or any(index == other.index for other in self._locks)):\n",
        "if index == lock.index and not lock.is_open():\n                continue\n"
        "            if index == lock.index or any(index == other.index for other in self._locks):\n",
        "guard/test_check.py::test_the_descriptor_of_the_nic_was_closed",
    ),
    Mutation(
        "the queue is not emptied", INTERFACE, "                lock.empty_queue()\n", "",
        "guard/test_check.py::test_the_queue_is_emptied",
    ),
    Mutation(
        "`any` is not looked for on a new NIC", INTERFACE,
        "if index and all(other.index for other in self._locks) and", "if False and",
        "guard/test_check.py::test_a_nic_that_was_made_again_while_another_has_all",
    ),
    Mutation(
        "any squatter ends the holder", INTERFACE, "if held.peer.ours():", "if True:",
        "guard/test_check.py::test_a_nic_that_was_made_again_and_squatted[True]",
    ),
    Mutation(
        "who has the new NIC never runs", INTERFACE, "if held.peer.ours():", "if False:",
        "guard/test_check.py::test_a_nic_that_was_made_again_and_taken",
    ),
    Mutation(
        "not lost whatever comes", GUARD, "raise GuardLost(line)", "pass",
        "guard/test_check.py::test_it_is_lost_without_the_lock_of_a_nic",
    ),
    Mutation(
        "lost at the first look", GUARD, "LOOKS = 8", "LOOKS = 0",
        "guard/test_check.py::test_a_newcomer_that_has_the_file_for_a_moment_is_waited_for",
    ),
    Mutation(
        "one look counts with those of long ago", GUARD, "self._looks + 1 if found.rivals else 0", "self._looks + 1",
        "guard/test_check.py::test_a_newcomer_that_has_the_file_for_a_moment_is_waited_for",
    ),
    Mutation(
        "checked once an hour", GUARD, "CHECK_SECONDS = 10.0", "CHECK_SECONDS = 3600.0",
        "guard/test_check.py::test_when_it_is_due",
    ),
    Mutation(
        "suspicion does not hurry", GUARD, "SUSPECT_SECONDS = 0.25", "SUSPECT_SECONDS = 10.0",
        "guard/test_check.py::test_suspicion_shortens_the_wait",
    ),
    Mutation(
        "the NIC is opened and the guard not checked", "capture/run.py",
        "        if guard is not None:\n            _settle(guard)\n", "",
        "guard/test_steps.py::test_a_run_from_its_start_to_its_end",
    ),
    Mutation(
        "a NIC that is back is read unchecked", "capture/run.py",
        "        source.returned = lambda: _settle(guard)\n", "        source.returned = lambda: None\n",
        "guard/test_steps.py::test_a_run_does_not_read_a_new_nic_that_another_has",
    ),
    Mutation(
        "the loop does not check", "capture/run.py", "if guard is not None and guard.due(now_seconds):", "if False:",
        "guard/test_steps.py::test_a_run_mends_its_guard",
    ),
    Mutation(
        "the loop ignores that it is lost", "capture/run.py",
        "    lines = guard.check()\n",
        "    try:\n        lines = guard.check()\n    except GuardError as error:\n        lines = [str(error)]\n",
        "guard/test_steps.py::test_a_run_ends_when_its_guard_is_lost",
    ),
    Mutation(
        "what ended the loop is forgotten", "capture/run.py",
        "    except (HttpCaptureError, GuardError) as error:\n        return error\n",
        "    except (HttpCaptureError, GuardError):\n        return None\n",
        "guard/test_steps.py::test_a_run_ends_when_its_guard_is_lost",
    ),
    # Step 9: children
    Mutation(
        "a child checks too", GUARD,
        "        if os.getpid() != self._owner:\n            return []\n", "",
        "guard/test_check.py::test_a_worker_that_outlives_its_parent_blocks_a_start",
    ),
    Mutation(
        "a child gives it up for its parent", GUARD, "        if os.getpid() == self._owner:\n", "        if True:\n",
        "guard/test_guard.py::test_release_in_a_forked_child_leaves_the_guard",
    ),
    Mutation(
        "not with its parent", "capture/cli.py", "        end_with(parent)\n", "        pass\n",
        "guard/test_steps.py::test_a_run_ends_with_its_parent[arguments0]",
    ),
    Mutation(
        "not with its parent as another user", "capture/run.py",
        "            if parent is not None:\n                end_with(parent)\n", "",
        "guard/test_steps.py::test_a_run_ends_with_its_parent[arguments1]",
    ),
    Mutation(
        "not with a parent that was gone before", "capture/process.py", "if os.getppid() != parent:", "if False:",
        "test_process.py::TestDieWithParent::test_when_it_is_gone_already",
    ),
    # Step 10: the end
    Mutation(
        "the file is removed", GUARD,
        "            self._file.empty()\n", "            self._file.empty()\n            os.unlink(self._file.path)\n",
        "guard/test_guard.py::test_release_empties_and_keeps_the_file",
    ),
    Mutation(
        "the text is left", GUARD, "            self._file.empty()\n", "",
        "guard/test_guard.py::test_release_empties_and_keeps_the_file",
    ),
    Mutation(
        "not released by the program", "capture/cli.py", "            guard.release()\n", "            pass\n",
        "guard/test_steps.py::test_a_run_from_its_start_to_its_end",
    ),
    Mutation(
        "released while the NIC is open", "capture/pipeline.py",
        "        self.source.close()\n        self.connections.shutdown()\n", "        self.connections.shutdown()\n",
        "test_process.py::TestOrderOfAStop::test_the_nic_first_and_the_guard_last",
    ),
    # The refusal
    Mutation(
        "0 for one that runs already", "capture/cli.py",
        "return int(error.exit_code)", "return 0 if error.exit_code == 75 else int(error.exit_code)",
        "guard/test_steps.py::test_a_second_copy_is_refused_before_anything_else[before0-arguments0]",
    ),
    Mutation(
        "0 for no guard", "capture/cli.py",
        "return int(error.exit_code)", "return 0 if error.exit_code == 73 else int(error.exit_code)",
        "guard/test_steps.py::test_an_unfit_pidfile_ends_the_program",
    ),
    Mutation(
        "0 for a lost guard", GUARD, "exit_code = 76", "exit_code = 0",
        "guard/test_steps.py::test_a_run_ends_when_its_guard_is_lost",
    ),
    Mutation(
        "the NIC before the guard", "capture/cli.py",
        "    guard = None\n    if interfaces:\n",
        "    guard = None\n    if interfaces:\n        from .source import open_source\n\n"
        "        open_source(loading.convert(values, origins).source)\n",
        "guard/test_steps.py::test_a_second_copy_is_refused_before_anything_else[before1-arguments1]",
    ),
    Mutation(
        "the sink before the guard", "capture/cli.py",
        "    guard = None\n    if interfaces:\n",
        "    guard = None\n    if interfaces:\n        from .sink import open_sink\n\n"
        "        settings = loading.convert(values, origins)\n"
        "        open_sink(settings.sink, settings.kafka, live=True)\n",
        "guard/test_steps.py::test_a_second_copy_is_refused_before_anything_else[before2-arguments2]",
    ),
    Mutation(
        "heavy imports before the guard", GUARD, "import time\n", "import json\nimport time\n",
        "guard/test_guard.py::test_a_refused_start_keeps_nothing_open_and_imports_little",
    ),
    Mutation(
        "not to syslog", "capture/cli.py", "    syslog.syslog(syslog.LOG_ERR, text)\n", "",
        "guard/test_steps.py::test_a_refusal_goes_to_syslog",
    ),
    Mutation(
        "not as JSON", "capture/cli.py", "    if not sys.stderr.isatty():\n", "    if False:\n",
        "guard/test_steps.py::test_a_second_copy_is_refused_before_anything_else[before0-arguments0]",
    ),
    Mutation(
        "the file is left open after a refusal", GUARD,
        "        locks.release()\n        file.close()\n", "        locks.release()\n",
        "guard/test_guard.py::test_a_refusal_leaves_no_descriptor",
    ),
    Mutation(
        "the NIC stays locked after a refusal", GUARD,
        "        locks.release()\n        file.close()\n", "        file.close()\n",
        "guard/test_steps.py::test_the_nic_is_free_after_a_text_that_was_cut_short",
    ),
    Mutation(
        "too few descriptors is a traceback", GUARD,
        "    except OSError as error:\n        raise GuardError(f\"the guard cannot be set up",
        "    except ZeroDivisionError as error:\n        raise GuardError(f\"the guard cannot be set up",
        "guard/test_guard.py::test_without_descriptors[0]",
    ),
    # The holder's name
    Mutation(
        "the kernel is not asked for the holder", "guard/holder.py", "if held.blocker > 0:", "if False:",
        "guard/test_guard.py::test_the_kernel_names_a_holder_that_may_not_be_looked_into[]",
    ),
    Mutation(
        "the text is believed", "guard/holder.py",
        "        answer = holds(pid)\n        if answer:\n            return Holder(pid, source)\n",
        "        return Holder(pid, source)\n",
        "guard/test_steps.py::test_text_about_another_process_does_not_name_it",
    ),
    Mutation(
        "a pid that was used again", "guard/holder.py",
        "state is not None and str(state[1]) == start", "state is not None",
        "guard/test_holder.py::test_alive",
    ),
    Mutation(
        "a pid of another boot", "guard/holder.py",
        'len(pid) < 10 and identity.get("boot") == boot_id())', "len(pid) < 10)",
        "guard/test_holder.py::test_alive",
    ),
    Mutation(
        "a stopped holder is not told", "guard/holder.py", 'self.stopped = state[0] in "Tt"', "self.stopped = False",
        "guard/test_guard.py::test_a_stopped_holder_is_refused_and_said_to_be_stopped",
    ),
    Mutation(
        "what to type is not quoted", PIDFILE, '    return "\'" + word.replace(', "    return word or word.replace(",
        "guard/test_pidfile.py::test_quote",
    ),
    Mutation(
        "what is told may hold anything", PIDFILE, "char if char.isprintable() else ascii(char)[1:-1]", "char",
        "guard/test_pidfile.py::test_one_line",
    ),
    # status
    Mutation(
        "a look that tries the lock", PIDFILE,
        "        return Query(path, fd)\n",
        "        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)\n        return Query(path, fd)\n",
        "guard/test_steps.py::test_a_look_locks_nothing_and_writes_nothing",
    ),
    Mutation(
        "a look that makes the file", PIDFILE, "LOOK = os.O_RDONLY |", "LOOK = os.O_RDWR | os.O_CREAT |",
        "guard/test_steps.py::test_a_look_locks_nothing_and_writes_nothing",
    ),
    Mutation(
        "a look that waits at a FIFO", PIDFILE,
        "LOOK = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK |",
        "LOOK = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW |",
        "guard/test_steps.py::test_a_query_of_what_was_a_file_a_moment_ago[fifo]",
    ),
    Mutation(
        "a look that follows a link", PIDFILE,
        "LOOK = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW |", "LOOK = os.O_RDONLY | os.O_CLOEXEC |",
        "guard/test_steps.py::test_a_query_of_what_was_a_file_a_moment_ago[link]",
    ),
    Mutation(
        "a device is opened by a look", PIDFILE,
        "_regular(path, os.lstat(path).st_mode)  # opening", "os.lstat(path)  # opening",
        "guard/test_steps.py::test_a_device_is_not_opened[query]",
    ),
    Mutation(
        "what cannot be told does not run", "guard/status.py", "    elif doubts:\n", "    elif False:\n",
        "guard/test_status.py::test_what_is_no_pidfile[fifo]",
    ),
    Mutation(
        "who locked the file is a copy", "guard/status.py",
        "        if _may_hold(holder, believed):\n", "        if True:\n",
        "guard/test_status.py::test_a_file_of_another_user",
    ),
    Mutation(
        "a squatter runs", "guard/status.py",
        "if not (peer.ours() or (holder.pid and may_capture(holder.pid))):", "if False:",
        "guard/test_status.py::test_a_squatter_is_no_copy",
    ),
    Mutation(
        "the text of a file that others write", "guard/status.py",
        "    if doubt:\n        status.notes", "    if False:\n        status.notes",
        "guard/test_status.py::test_a_file_that_others_can_write",
    ),
    Mutation(
        "the missing lock of the NIC is not told", "guard/status.py",
        '    if free and "network" not in holder.namespaces:', "    if False:",
        "guard/test_status.py::test_without_the_interface_lock",
    ),
    # stop
    Mutation(
        "no second look once it is pinned", "guard/stop.py",
        "            again = look(pidfile, interfaces)\n", "            again = status\n",
        "guard/test_stop.py::test_a_process_that_took_the_number_is_not_signalled",
    ),
    Mutation(
        "one without a name is signalled", "guard/stop.py",
        'if not holder.pid or holder.source not in ("lock", "socket", "fdinfo"):', "if False:",
        "guard/test_stop.py::test_from_another_pid_namespace",
    ),
    Mutation(
        "another program is signalled", "guard/stop.py", "    if not _ours(status, holder):\n", "    if False:\n",
        "guard/test_stop.py::test_another_program_that_has_locked_the_pidfile",
    ),
    Mutation(
        "one with a supervisor is signalled", "guard/stop.py",
        "    if managed(holder.pid, holder.launcher):\n", "    if False:\n",
        "guard/test_stop.py::test_under_systemd",
    ),
    Mutation(
        "a stopped one is signalled", "guard/stop.py", 'return "frozen" if holder.stopped and not kill else ""',
        'return ""',
        "guard/test_stop.py::test_a_stopped_one",
    ),
    Mutation(
        "killed without being told to", "guard/stop.py", "    if kill:\n", "    if True:\n",
        "guard/test_stop.py::test_one_that_takes_too_long",
    ),
    Mutation(
        "its lock is not waited for", "guard/stop.py",
        "if holder is None or (holder.pid and", "if True or (holder.pid and",
        "guard/test_steps.py::test_a_stop_waits_for_whoever_has_the_lock_still",
    ),
    # verify
    Mutation(
        "two on one NIC are not seen", "guard/verify.py", "        if len(there) > 1:\n", "        if False:\n",
        "guard/test_verify.py::test_the_accident",
    ),
    Mutation(
        "one without a guard is not seen", "guard/verify.py", "    if not copy.locks:\n", "    if False:\n",
        "guard/test_verify.py::test_an_old_version_without_a_guard",
    ),
    Mutation(
        "a pidfile that is gone is not seen", "guard/verify.py",
        "        if not _in_place(pid, lock):\n", "        if False:\n",
        "guard/test_verify.py::test_a_pidfile_that_is_gone[removed]",
    ),
    Mutation(
        "a text that is not true is not seen", "guard/verify.py",
        '        if told.get("pid") not in _pids(pid) or told.get("start") != str(copy.main.start):\n',
        "        if False:\n",
        "guard/test_verify.py::test_a_text_that_is_not_true[0-1-names 1]",
    ),
    Mutation(
        "a lost beacon is not seen", "guard/verify.py", "        if not lock.beacon:\n", "        if False:\n",
        "guard/test_verify.py::test_a_beacon_that_is_lost",
    ),
    Mutation(
        "what cannot be seen is fine", "guard/verify.py",
        '    if uid != 0 or (hidden and (scan.unowned or any(verb(pid) == "run" for pid in hidden))):\n',
        "    if False:\n",
        "guard/test_verify.py::test_who_cannot_see_others",
    ),
    Mutation(
        "by hand is as good", "guard/verify.py", "    if expect_supervised:\n", "    if False:\n",
        "guard/test_verify.py::test_supervised_or_not",
    ),
    Mutation(
        "no second look", "guard/verify.py",
        "    if report.code in (1, 4):\n", "    if False:\n",
        "guard/test_verify.py::test_what_is_bad_for_a_moment_only",
    ),
]
# fmt: on


class Run:
    """pytest on one copy of the package, in the background. Once `poll()` says so: code, text, seconds, hung."""

    def __init__(self, name, folder, tests, limit):
        self.name = name
        self.folder = folder
        self.limit = limit
        self.began = time.monotonic()
        (folder / "tmp").mkdir()
        command = [
            sys.executable, "-m", "pytest", "-q", "-x", "--tb=short", "-p", "no:cacheprovider", "--basetemp",
            folder / "tmp" / "tests", *(TESTS / test for test in tests),
        ]  # fmt: skip
        with open(folder / "log", "wb") as log:
            # In a session of its own, so that what it started can be ended with it.
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment(folder), stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.hung = False

    def poll(self):
        """Whether it has ended. What takes too long is ended."""
        if self.process.poll() is None:
            if time.monotonic() - self.began < self.limit:
                return False
            self.hung = True
            self.end()
        self.seconds = time.monotonic() - self.began
        self.code = self.process.returncode
        self.text = (self.folder / "log").read_text(errors="replace")
        return True

    def end(self):
        """As by Ctrl-C, so that the tests clear up."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def lines(self, word):
        """What pytest's summary says of tests that FAILED or were SKIPPED."""
        return [line.removeprefix(word).strip() for line in self.text.splitlines() if line.startswith(f"{word} ")]


def environment(folder):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HTTP_CAPTURE_", "PYTEST_"))}
    return kept | {
        "PYTHONPATH": str(folder), "TMPDIR": str(folder / "tmp"), "COLUMNS": "200",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # none is needed, and they take longer to start than most tests
    }  # fmt: skip


def copy(source, folder):
    """The package as `http_capture` in this new folder."""
    folder.mkdir()
    for package in PACKAGES:
        for path in (source / package).rglob("*"):
            if path.suffix in SUFFIXES or (path.suffix == ".pyc" and source != ROOT):
                target = folder / "http_capture" / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)  # with its times, by which a compiled file is known to be its
    return folder


def mutate(folder, mutation):
    path = folder / "http_capture" / mutation.file
    path.write_text(path.read_text().replace(mutation.old, mutation.new))
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()


def mistakes(mutations):
    """What is wrong with the list itself, a line each."""
    found = []
    for mutation in mutations:
        text = (ROOT / mutation.file).read_text()
        if (count := text.count(mutation.old)) != 1:
            found.append(f"{mutation.name}: its old text is {count} times in {mutation.file}")
            continue
        try:
            compile(text.replace(mutation.old, mutation.new), mutation.file, "exec")
        except SyntaxError as error:
            found.append(f"{mutation.name}: {error}")
    names = [mutation.name for mutation in mutations]
    return found + [f"{name}: there twice" for name in sorted({name for name in names if names.count(name) > 1})]


def misled(folder):
    """Why the tests would not see this copy, whatever is installed; "": they do."""
    code = "".join(f"import http_capture.{name} as module; print(module.__file__)\n" for name in PACKAGES)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(folder), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        return f"the package cannot be imported\n{done.stderr}"
    others = [path for path in done.stdout.splitlines() if not path.startswith(f"{folder}/http_capture/")]
    return f"the tests would import others than the copy that is changed: {', '.join(others)}" if others else ""


def each(runs):
    """Has the runs made, some at once, and gives each once it has ended. Whatever happens, none is left behind."""
    runs, running = iter(runs), []
    try:
        while True:
            while len(running) < AT_ONCE and (run := next(runs, None)) is not None:
                running.append(run)
            if not running:
                return
            for run in [run for run in running if run.poll()]:
                running.remove(run)
                yield run
            time.sleep(0.02)
    finally:
        for run in running:
            run.end()


def check(mutations, scratch):
    """The exit code."""
    began = time.monotonic()
    whole = copy(ROOT, scratch / "whole")
    if reason := misled(whole):
        print(f"mutations: {reason}")
        return 2
    tests = sorted({mutation.test for mutation in mutations})
    print(f"{len(tests)} tests on the whole guard", flush=True)
    halves = [half for half in (tests[::2], tests[1::2]) if half]
    copies = [copy(whole / "http_capture", scratch / f"whole{number}") for number in range(len(halves))]
    skipped = []
    with contextlib.closing(
        each(Run("whole", *one, WHOLE_SECONDS) for one in zip(copies, halves, strict=True))
    ) as runs:
        for run in runs:
            if run.code != 0 or run.hung:
                print(f"{run.text}\nmutations: the tests must be green before anything is taken out")
                return 1
            skipped += run.lines("SKIPPED")
    if skipped:
        print("mutations: skipped, as these tests cannot run here:", *skipped, sep="\n  ")
        return 77
    print(f"all green, {time.monotonic() - began:.0f} s; {len(mutations)} mutations", flush=True)

    def begin():
        for number, mutation in enumerate(mutations):
            folder = copy(copies[0] / "http_capture", scratch / str(number))
            mutate(folder, mutation)
            yield Run(mutation.name, folder, [mutation.test], MUTANT_SECONDS)

    survived = []
    with contextlib.closing(each(begin())) as runs:
        for run in runs:
            failed = run.lines("FAILED")
            if run.code == 1 and failed and not run.hung:
                print(f"caught    {run.seconds:4.1f} s  {run.name}: {failed[0].removeprefix('tests/')}", flush=True)
            else:
                survived.append(run.name)
                how = "takes too long" if run.hung else f"pytest ended with {run.code}"
                print(f"SURVIVED  {run.seconds:4.1f} s  {run.name}: {how}\n{run.text}", flush=True)
            shutil.rmtree(run.folder)
    print(f"{len(mutations) - len(survived)} of {len(mutations)} caught, {time.monotonic() - began:.0f} s")
    if survived:
        print(f"SURVIVED: {'; '.join(survived)}")
    return 1 if survived else 0


def main():
    parser = argparse.ArgumentParser(description="Takes the steps of the guard out, one at a time; a test must fail.")
    parser.add_argument("--list", action="store_true", help="the mutations, and the test that must fail for each")
    parser.add_argument("--only", action="append", metavar="NAME", help="those with this in their name; repeatable")
    options = parser.parse_args()
    mutations = [one for one in MUTATIONS if not options.only or any(name in one.name for name in options.only)]
    if not mutations:
        parser.error(f"no mutation has {' or '.join(options.only)} in its name; see --list")
    if options.list:
        for mutation in mutations:
            print(f"{mutation.name} ({mutation.file}): {mutation.test}")
        return 0
    if found := mistakes(mutations):
        print("mutations: the list does not fit the code any more:", *found, sep="\n  ")
        return 2
    if os.geteuid() != 0:
        print("mutations: skipped, as the tests of the guard need root (network namespaces, mounts, other users)")
        return 77
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="hc-") as scratch:
        os.chmod(scratch, 0o755)  # tests become other users
        try:
            return check(mutations, pathlib.Path(scratch))
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
