"""Standard output, a file, nowhere: whole lines, exact counts, and what happens when writing fails."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest
from http_capture.capture.errors import NotPermittedError, UnavailableError, UndeliveredError, UsageError
from http_capture.capture.sink import SinkStats, lines, open_sink, share_sink
from http_capture.capture.sink.null import Null
from http_capture.config.settings import KafkaSettings, SinkSettings

HEADERS = [("id", b"1")]


def send(sink, value):
    sink.send(b"k", value, HEADERS, 1)


def balanced(sink):
    stats = sink.stats()
    assert stats.records == stats.delivered + stats.pending + sum(stats.undelivered.values())
    assert min(stats.delivered, stats.pending, *stats.undelivered.values(), 0) == 0
    return stats


def drain(descriptor):
    data = bytearray()
    while piece := os.read(descriptor, 1 << 20):
        data += piece
    return bytes(data)


@pytest.fixture
def pipe():
    """Both ends, as a list; a test that closes one does it with `close`: the number may soon be somebody else's."""
    ends = list(os.pipe())
    yield ends
    for index in range(2):
        close(ends, index)


def close(pipe, index):
    if pipe[index] >= 0:
        os.close(pipe[index])
        pipe[index] = -1


# --- which sink


def opened(to, *, live=False, brokers=()):
    return open_sink(SinkSettings(to=to), KafkaSettings(brokers=brokers), live=live)


def test_without_brokers_the_default_is_standard_output():
    assert isinstance(opened(""), lines.Lines)
    assert isinstance(opened("stdout", brokers=("a:1",)), lines.Lines)
    assert isinstance(opened("null"), Null)


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("kafka", "needs brokers"),
        ("har:/x", "not available yet"),
        ("file:", "needs a path"),
        ("file", "needs a path"),
        ("kafkaa", "one of kafka, stdout, null, file:PATH"),
        ("null:x", "one of kafka, stdout, null, file:PATH"),
        ("stdout:x", "one of kafka, stdout, null, file:PATH"),
    ],
)
def test_a_sink_that_does_not_exist(to, says):
    with pytest.raises(UsageError, match=says):
        opened(to)


def test_brokers_make_kafka_the_default():
    from http_capture.capture.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        opened("", brokers=("not a broker",))


def test_null_counts():
    sink = opened("null")
    send(sink, b"123")
    sink.poll()
    assert sink.flush(0) == 0
    assert sink.stats() == SinkStats(records=1, bytes=3, delivered=1)
    sink.close()


# --- a file


def test_a_file_holds_each_value_as_a_line_and_is_private(tmp_path):
    path = tmp_path / "a"
    sink = opened(f"file:{path}")
    for number in range(40000):
        send(sink, b'{"n":%d}' % number)
    assert 0 < balanced(sink).pending < 40000
    assert sink.flush(1) == 0
    assert balanced(sink).delivered == 40000
    sink.close()
    assert path.read_bytes() == b"".join(b'{"n":%d}\n' % number for number in range(40000))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_is_appended_to_and_a_partial_line_ended(tmp_path, caplog):
    path = tmp_path / "a"
    for before, after in ((b"{old}\n", b"{old}\nnew\n"), (b"{old}\n{hal", b"{old}\n{hal\nnew\n")):
        path.write_bytes(before)
        sink = opened(f"file:{path}")
        send(sink, b"new")
        sink.flush(1)
        sink.close()
        assert path.read_bytes() == after
    assert caplog.text.count("partial line") == 1


@pytest.mark.parametrize("begins", [b"", b"{}\n", b"\n\n{}\n"])
def test_what_may_be_a_file_of_records_is_appended_to(tmp_path, begins):
    path = tmp_path / "a"
    path.write_bytes(begins)
    sink = opened(f"file:{path}")
    send(sink, b"{}")
    assert sink.flush(1) == 0
    sink.close()
    assert path.read_bytes() == begins + b"{}\n"


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        b"\xd4\xc3\xb2\xa1\x02\x00\x04\x00",  # pcap
        b"\x0a\x0d\x0d\x0a\x1c\x00\x00\x00",  # pcapng: begins as an empty line does
        b"\x1f\x8b\x08\x00",  # gzip
        b"\x28\xb5\x2f\xfd",  # zstd
        b"[capture]\n",
        b"\nwords\n",
        b"words",
        b" ",
        b"\0" * 4096,
    ],
)
def test_a_file_that_holds_something_else_is_left_as_it_is(tmp_path, content, live):
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="left as it is"):
        opened(f"file:{path}", live=live)
    assert path.read_bytes() == content


def test_two_runs_do_not_write_one_file(tmp_path):
    sink = opened(f"file:{tmp_path}/a")
    with pytest.raises(UsageError, match="another run"):
        opened(f"file:{tmp_path}/a")
    sink.close()
    opened(f"file:{tmp_path}/a").close()


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/null"):
        with pytest.raises((UsageError, UndeliveredError)):
            opened(f"file:{path}")
    with pytest.raises(UndeliveredError, match="Is a directory"):
        opened(f"file:{tmp_path}")
    with pytest.raises(UndeliveredError, match="No such file"):
        opened(f"file:{tmp_path}/absent/a")
    if os.getuid():
        (tmp_path / "closed").touch(mode=0)
        with pytest.raises(NotPermittedError):
            opened(f"file:{tmp_path}/closed")


def limited(path, limit, live):
    """Sends 400 records of 1000 bytes to a file that may not grow beyond `limit` bytes, in a process of its own."""
    code = f"""
import resource, sys
from http_capture.capture.sink import open_sink
from http_capture.config.settings import KafkaSettings, SinkSettings
from http_capture.capture.errors import UndeliveredError
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sink = open_sink(SinkSettings(to="file:" + sys.argv[1]), KafkaSettings(), live={live})
for number in range(400):
    sink.send(b"", b"%04d" % number + b"x" * 995, [], 1)
try:
    sink.poll()
    print("went on")
except UndeliveredError as error:
    print(error)
print(sink.flush(1), sink.stats())
sink.close()
"""
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return run.stdout


def test_a_write_that_fails_half_way_leaves_whole_lines(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"{before}\n")
    out = limited(path, 100_500, live=False)
    assert f"cannot write {path}: File too large: 100 records were written" in out
    assert "300 SinkStats(records=400, bytes=399600, delivered=100, pending=0, undelivered={'too_large': 300})" in out
    data = path.read_bytes()
    assert len(data) == 9 + 100 * 1000
    assert [line[:4] for line in data.splitlines()[1:]] == [b"%04d" % number for number in range(100)]


def test_for_a_nic_the_next_block_is_tried_again(tmp_path):
    path = tmp_path / "a"
    out = limited(path, 270_500, live=True)  # the first block (263 records) fits, the second (137) in part
    assert "went on" in out
    assert "130 SinkStats(records=400, bytes=399600, delivered=270, pending=0, undelivered={'too_large': 130})" in out
    assert path.stat().st_size == 270_000


@pytest.mark.root
def test_a_nic_never_waits_for_a_disk(frozen, monkeypatch):
    monkeypatch.setattr(lines, "WAITING_BYTES", 8 << 20)
    folder, freeze = frozen
    sink = opened(f"file:{folder}/a", live=True)
    freeze()
    began = time.monotonic()
    for number in range(20000):
        send(sink, b"%05d" % number + b"x" * 995)
        sink.poll()
        if number % 1000 == 0:
            balanced(sink)
    assert 0.99 < sink.filled() <= 1
    assert sink.flush(0.2) == 20000
    assert time.monotonic() - began < 5
    stats = balanced(sink)
    assert (stats.delivered, stats.pending) == (0, 20000 - stats.undelivered["queue_full"])
    assert 8000 < stats.pending <= 8389
    freeze(thaw=True)
    send(sink, b"after it")
    assert sink.flush(20) == stats.undelivered["queue_full"]
    assert sink.filled() == 0
    assert balanced(sink).delivered == stats.pending + 1
    sink.close()
    assert balanced(sink).delivered == stats.pending + 1
    written = (folder / "a").read_bytes().splitlines()
    assert [int(line[:5]) for line in written[:-1]] == list(range(stats.pending))
    assert written[-1] == b"after it"


@pytest.mark.root
def test_a_disk_that_stands_still_at_the_end(frozen):
    """The end does not wait for it beyond the limit, and what is in the air is not counted twice when it moves."""
    folder, freeze = frozen
    sink = opened(f"file:{folder}/a", live=True)
    send(sink, b"1")
    assert sink.flush(5) == 0
    freeze()
    send(sink, b"2")
    sink.poll()
    send(sink, b"3")
    began = time.monotonic()
    assert sink.flush(0.3) == 2
    sink.close()
    assert 0.3 <= time.monotonic() - began < 3
    freeze(thaw=True)
    deadline = time.monotonic() + 20
    while (folder / "a").read_bytes() != b"1\n2\n":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert balanced(sink) == SinkStats(3, 3, 1, 0, {"closed": 2})
    sink.close()


def test_what_is_not_durable_in_time_is_not_delivered(tmp_path, monkeypatch):
    """Whatever the disk says about it later."""
    sink = opened(f"file:{tmp_path}/a", live=True)
    send(sink, b"1")
    assert sink.flush(5) == 0
    come_back, over = threading.Event(), threading.Event()

    def slow(descriptor):
        come_back.wait(20)
        over.set()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", slow)
    for _ in range(10):
        send(sink, b"2")
    began = time.monotonic()
    assert sink.flush(0.3) == 10
    assert 0.3 <= time.monotonic() - began < 3
    balanced(sink)
    assert sink.flush(0.1) == 10
    sink.close()
    assert balanced(sink) == SinkStats(11, 11, 1, 0, {"closed": 10})
    come_back.set()
    assert over.wait(5)
    assert sink.stats() == SinkStats(11, 11, 1, 0, {"closed": 10})
    assert (tmp_path / "a").read_bytes() == b"1\n" + b"2\n" * 10


def test_what_is_being_written_counts_once_it_is_over(tmp_path, monkeypatch):
    """All of it, or nothing: whatever the thread has come to, the numbers add up."""
    sink = opened(f"file:{tmp_path}/a", live=True)
    began, go_on = threading.Event(), threading.Event()
    write = os.write

    def slow(descriptor, data):
        written = write(descriptor, data)
        began.set()
        go_on.wait(20)
        return written

    monkeypatch.setattr(os, "write", slow)
    send(sink, b"1")
    sink.poll()
    assert began.wait(5)
    assert balanced(sink) == SinkStats(1, 1, 0, 1)
    go_on.set()
    assert sink.flush(5) == 0
    assert balanced(sink) == SinkStats(1, 1, 1, 0)
    sink.close()
    assert balanced(sink) == SinkStats(1, 1, 1, 0)


def writers():
    return {thread for thread in threading.enumerate() if thread.name == "writer"}


def no_threads(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_the_thread_is_there_before_the_privileges_are_given_up(tmp_path, monkeypatch):
    before = writers()
    sink = opened(f"file:{tmp_path}/a", live=True)
    assert len(writers() - before) == 1
    no_threads(monkeypatch)
    send(sink, b"1")
    sink.poll()
    assert sink.flush(5) == 0
    sink.close()


def test_processes_that_are_forked_have_their_own_thread(tmp_path):
    before = writers()
    shared = share_sink(SinkSettings(to=f"file:{tmp_path}/a"), KafkaSettings(), live=True, processes=2)
    assert not writers() - before  # there must be none in the process that forks
    sink = shared.open(False)
    assert len(writers() - before) == 1
    send(sink, b"1")
    assert sink.flush(5) == 0
    sink.close()
    shared.close()
    assert (tmp_path / "a").read_bytes() == b"1\n"


def test_a_thread_that_cannot_be_started_is_an_error_of_the_start(tmp_path, monkeypatch):
    to = f"file:{tmp_path}/a"
    shared = share_sink(SinkSettings(to=to), KafkaSettings(), live=True, processes=2)
    with monkeypatch.context() as patch:
        no_threads(patch)
        with pytest.raises(UnavailableError, match=r"^the thread that writes .*/a cannot be started: see the limits"):
            shared.open(False)
        shared.close()
        with pytest.raises(UnavailableError, match="cannot be started"):
            opened(to, live=True)
    opened(to, live=True).close()  # nobody has it open


def test_a_process_that_ends_does_not_wait_for_the_thread(tmp_path, monkeypatch):
    """A disk may hold it for good."""
    shared = share_sink(SinkSettings(to=f"file:{tmp_path}/a"), KafkaSettings(), live=True, processes=2)
    before = writers()
    sink = shared.open(False)
    (thread,) = writers() - before
    began, go_on = threading.Event(), threading.Event()

    def slow(descriptor, data):
        del data
        began.set()
        go_on.wait(20)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", slow)
        send(sink, b"1")
        sink.poll()
        assert began.wait(5)
        at = time.monotonic()
        sink.close()
        assert time.monotonic() - at < 1
        assert balanced(sink) == SinkStats(1, 1, 0, 0, {"closed": 1})
        go_on.set()
        thread.join(5)
    assert not thread.is_alive()
    assert balanced(sink) == SinkStats(1, 1, 0, 0, {"closed": 1})
    shared.close()


def stale(*arguments):
    del arguments  # the traceback would keep what is written
    raise OSError(errno.ESTALE, "Stale file handle")


@pytest.mark.parametrize("what", ["fstat", "write"])
def test_a_file_system_that_goes_away_and_comes_back(tmp_path, monkeypatch, caplog, what):
    sink = opened(f"file:{tmp_path}/a", live=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, what, stale)
        for number in range(1, 4):
            send(sink, b"1")
            assert sink.flush(5) == number
            sink.poll()
    assert "cannot write" in caplog.text
    send(sink, b"2")
    assert sink.flush(5) == 3
    assert balanced(sink) == SinkStats(4, 4, 1, 0, {"io_error": 3})
    sink.close()
    assert (tmp_path / "a").read_bytes() == b"2\n"


def test_a_replay_into_a_file_system_that_has_gone(tmp_path, monkeypatch):
    sink = opened(f"file:{tmp_path}/a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", stale)
        send(sink, b"1")
        with pytest.raises(UndeliveredError, match="Stale file handle: 0 records were written"):
            sink.poll()
    assert sink.flush(1) == 1
    monkeypatch.setattr(os, "close", stale)  # says what was said before
    sink.close()
    assert balanced(sink) == SinkStats(1, 1, 0, 0, {"io_error": 1})


def test_a_full_device():
    descriptor = os.open("/dev/full", os.O_WRONLY)
    sink = lines.Lines(descriptor, "full", live=False, owned=True)
    send(sink, b"1")
    with pytest.raises(UndeliveredError, match="cannot write full: No space left on device: 0 records were written"):
        sink.poll()
    send(sink, b"2")
    assert sink.flush(1) == 2
    assert balanced(sink).undelivered == {"no_space": 2}
    sink.close()
    sink.close()


def test_a_failing_sync_takes_back_what_was_not_durable(tmp_path, monkeypatch):
    sink = opened(f"file:{tmp_path}/a")
    send(sink, b"1")
    assert sink.flush(1) == 0
    send(sink, b"2")

    def failing(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    assert sink.flush(1) == 1
    assert balanced(sink) == SinkStats(2, 2, 1, 0, {"io_error": 1})
    sink.close()


def test_redirected_standard_output_is_cut_back_only_where_the_end_is_ours(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"0123456789" * 100)
    descriptor = os.open(path, os.O_RDWR)  # as of `1<>a`: writes go to the start, over what is there
    sink = lines.Lines(descriptor, "a", live=False, owned=True)
    sink._cut(5, 3)
    assert path.stat().st_size == 1000
    os.lseek(descriptor, 0, os.SEEK_END)
    sink._cut(1000, 3)
    assert path.stat().st_size == 997
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == 997
    sink.close()


# --- a pipe


def test_a_pipe_gets_every_line_however_slow_the_reader_for_a_replay(pipe):
    sink = lines.Lines(pipe[1], "pipe", live=False)
    got = []
    reader = threading.Thread(target=lambda: (time.sleep(0.3), got.append(drain(pipe[0]))))
    reader.start()
    for number in range(3000):
        send(sink, b"%04d" % number + b"x" * 500)
    assert sink.flush(0.001) == 0  # a replay waits for its reader without a limit
    assert balanced(sink).delivered == 3000
    close(pipe, 1)
    reader.join()
    assert got[0] == b"".join(b"%04d" % number + b"x" * 500 + b"\n" for number in range(3000))


@pytest.mark.alone
def test_a_replay_asked_to_stop_waits_no_longer(pipe):
    sink = lines.Lines(pipe[1], "pipe", live=False)
    threading.Timer(0.3, setattr, (sink, "waits", False)).start()
    began = time.monotonic()
    for _ in range(3000):
        send(sink, b"x" * 500)
    sink.poll()
    assert sink.flush(0.2) > 0
    assert time.monotonic() - began < 2
    assert balanced(sink).pending > 0
    sink.close()
    assert balanced(sink).undelivered == {"closed": 3000 - sink.stats().delivered}


@pytest.mark.alone
def test_a_nic_never_waits_for_a_reader(pipe, monkeypatch):
    monkeypatch.setattr(lines, "WAITING_BYTES", 1 << 20)
    sink = lines.Lines(pipe[1], "pipe", live=True)
    began = time.monotonic()
    for number in range(4000):
        send(sink, b"%04d" % number + b"x" * 500)
        sink.poll()
        balanced(sink)
    assert sink.flush(0.1) == 4000 - sink.stats().delivered
    assert time.monotonic() - began < 3
    stats = balanced(sink)
    assert stats.undelivered["queue_full"] > 1000
    assert stats.delivered > 50
    assert len(sink._buffer) <= 1 << 20
    assert 0.99 < sink.filled() <= 1
    got = []
    reader = threading.Thread(target=lambda: got.append(drain(pipe[0])))
    reader.start()
    assert sink.flush(5) == stats.undelivered["queue_full"]
    assert sink.filled() == 0
    close(pipe, 1)
    reader.join()
    numbers = [int(line[:4]) for line in got[0].splitlines()]
    assert numbers == sorted(numbers)
    assert {len(line) for line in got[0].splitlines()} == {504}
    assert len(numbers) == sink.stats().delivered
    assert fcntl.fcntl(pipe[0], fcntl.F_GETFL) & os.O_NONBLOCK == 0


def test_a_record_larger_than_all_that_may_wait_is_still_written(pipe, monkeypatch):
    monkeypatch.setattr(lines, "WAITING_BYTES", 1000)
    sink = lines.Lines(pipe[1], "pipe", live=True)
    send(sink, b"x" * 5000)
    sink.poll()
    assert sink.flush(1) == 0


@pytest.mark.alone
def test_lines_come_within_100_ms_of_polling(pipe):
    sink = lines.Lines(pipe[1], "pipe", live=True)
    sink.poll()
    send(sink, b"a")
    sink.poll()
    assert os.read(pipe[0], 10) == b"a\n"
    send(sink, b"b")
    sink.poll()
    assert sink.stats().pending == 1
    time.sleep(0.11)
    sink.poll()
    assert os.read(pipe[0], 10) == b"b\n"


@pytest.mark.parametrize("live", [False, True])
def test_a_reader_that_has_gone_ends_the_run_quietly(pipe, live):
    sink = lines.Lines(pipe[1], "pipe", live=live)
    send(sink, b"a")
    sink.poll()
    close(pipe, 0)
    send(sink, b"b")
    with pytest.raises(lines.ReaderGone) as caught:
        sink.flush(1)
    assert caught.value.exit_code == 0
    send(sink, b"c")
    with pytest.raises(lines.ReaderGone):
        sink.poll()
    assert balanced(sink) == SinkStats(3, 3, 1, 0, {"reader_gone": 2})
    sink.close()


def test_into_head():
    code = """
import sys
from http_capture.capture.sink import open_sink
from http_capture.capture.sink.lines import ReaderGone
from http_capture.config.settings import KafkaSettings, SinkSettings
sink = open_sink(SinkSettings(), KafkaSettings(), live=False)
try:
    for number in range(10_000_000):
        sink.send(b"", b"%08d" % number, [], 1)
        if not number % 1000:
            sink.poll()
except ReaderGone as gone:
    sink.close()
    sys.exit(gone.exit_code)
sys.exit(1)
"""
    shell = f"set -o pipefail; {sys.executable} -c '{code}' | head -1"
    run = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=30)
    assert (run.returncode, run.stdout, run.stderr) == (0, "00000000\n", "")


def test_closed_standard_output():
    code = """
from http_capture.capture.errors import UsageError
from http_capture.capture.sink import open_sink
from http_capture.config.settings import KafkaSettings, SinkSettings
try:
    open_sink(SinkSettings(), KafkaSettings(), live=False)
except UsageError:
    import sys
    sys.exit(64)
"""
    run = subprocess.run(["bash", "-c", f"{sys.executable} -c '{code}' >&-"], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (64, "")


def test_memory_of_a_replay_is_one_block(tmp_path):
    sink = opened(f"file:{tmp_path}/a")
    for _ in range(2000):
        send(sink, b"x" * 1000)
        assert len(sink._buffer) < lines.BLOCK_BYTES
        assert len(sink._ends) == sink.stats().pending
    sink.close()


# --- turns


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EACCES, errno.EDEADLK])
def test_nothing_is_written_where_no_turn_can_be_had(tmp_path, monkeypatch, caplog, live, number):
    shared = share_sink(SinkSettings(to=f"file:{tmp_path}/a"), KafkaSettings(), live=live, processes=2)
    sink = shared.open(False)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "lockf", refuse)
        send(sink, b"1")
        if live:
            assert sink.flush(5) == 1
            send(sink, b"2")
            assert sink.flush(5) == 2
            assert caplog.text.count(os.strerror(number)) == 1
        else:
            with pytest.raises(UndeliveredError, match=os.strerror(number)):
                sink.poll()
            send(sink, b"2")
    assert balanced(sink).undelivered == {"io_error": 2}
    send(sink, b"3")
    assert sink.flush(5) == (2 if live else 3)
    sink.close()
    shared.close()
    assert (tmp_path / "a").read_bytes() == (b"3\n" if live else b"")


@pytest.mark.alone
def test_a_replay_asked_to_stop_waits_no_longer_for_its_turn(pipe):
    """Which another process may have for as long as the reader is slow."""
    turns = lines.Turns()
    child = os.fork()
    if child == 0:
        turns.take(wait=True)
        os.write(pipe[1], b"!")
        time.sleep(30)
        os._exit(0)
    assert os.read(pipe[0], 1) == b"!"
    sink = lines.Lines(pipe[1], "pipe", live=False, turns=turns)
    send(sink, b"1")
    left = []
    thread = threading.Thread(target=lambda: left.append(sink.flush(0.1)))
    thread.start()
    thread.join(0.5)
    waited = thread.is_alive()
    sink.waits = False
    thread.join(3)
    late = thread.is_alive()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    thread.join()
    assert waited
    assert not late
    assert left == [1]
    sink.close()


@pytest.fixture
def half_a_line(pipe):
    """A sink whose turn is next, after one that has ended with half a line in a full pipe; and how much that is."""
    turns = lines.Turns()
    first = lines.Lines(pipe[1], "pipe", live=True)
    cut, sink = first.shared(turns), first.shared(turns)
    for _ in range(200):
        send(cut, b"x" * 2999)
    cut.poll()
    taken = cut.stats().delivered * 3000 + cut._written
    assert cut._written > 0
    cut.close()
    assert turns.broken
    yield sink, taken
    sink.close()


def in_time(pipe, what):
    """What it returns or raises; the reader goes where it waits for that one."""
    got = []

    def call():
        try:
            got.append(what())
        except BaseException as error:
            got.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(3)
    late = thread.is_alive()
    if late:
        close(pipe, 0)
        thread.join()
    assert not late
    if isinstance(got[0], BaseException):
        raise got[0]
    return got[0]


@pytest.mark.alone
def test_a_nic_does_not_wait_to_end_the_line_of_another(pipe, half_a_line):
    sink, taken = half_a_line
    send(sink, b"y")
    in_time(pipe, sink.poll)
    assert balanced(sink) == SinkStats(1, 1, 0, 1)
    assert sink._turns.broken
    began = time.monotonic()
    assert in_time(pipe, lambda: sink.flush(0.3)) == 1
    assert 0.3 <= time.monotonic() - began < 2
    assert sink._turns.broken
    another = sink.shared(sink._turns)
    assert sink._turns.take(wait=False)
    sink._turns.give()
    rest = taken
    while rest:
        rest -= len(os.read(pipe[0], rest))
    send(another, b"z")
    for each in (sink, another):
        assert in_time(pipe, lambda each=each: each.flush(5)) == 0
    assert os.read(pipe[0], 100) == b"\ny\nz\n"
    assert not sink._turns.broken
    another.close()


def test_the_reader_has_gone_before_the_line_of_another_was_ended(pipe, half_a_line):
    sink, _ = half_a_line
    close(pipe, 0)
    send(sink, b"y")
    with pytest.raises(lines.ReaderGone):
        in_time(pipe, sink.poll)
    assert balanced(sink) == SinkStats(1, 1, 0, 0, {"reader_gone": 1})


def test_another_process_took_the_room_for_the_end_of_the_line(pipe, half_a_line, monkeypatch):
    """Which it can where it has set O_NONBLOCK."""
    sink, _ = half_a_line
    os.set_blocking(pipe[1], False)
    monkeypatch.setattr(sink, "_writable", lambda until: True)
    send(sink, b"y")
    in_time(pipe, sink.poll)
    assert balanced(sink) == SinkStats(1, 1, 0, 1)
    assert sink._turns.broken


def test_a_full_disk_leaves_the_line_of_another_to_be_ended_later(tmp_path, monkeypatch):
    path = tmp_path / "a"
    shared = share_sink(SinkSettings(to=f"file:{path}"), KafkaSettings(), live=True, processes=2)
    sink = shared.open(False)
    turns = sink._sink._turns
    turns.broken = True
    path.write_bytes(b'{"half": ')

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        send(sink, b"1")
        assert sink.flush(5) == 1
    assert turns.broken
    send(sink, b"{}")
    assert sink.flush(5) == 1
    assert not turns.broken
    sink.close()
    shared.close()
    assert path.read_bytes() == b'{"half": \n{}\n'


def test_a_line_is_ended_in_a_file_that_cannot_be_read(tmp_path):
    """As `> a` opens it."""
    path = tmp_path / "a"
    path.write_bytes(b'{"half": ')
    turns = lines.Turns()
    turns.broken = True
    sink = lines.Lines(os.open(path, os.O_WRONLY | os.O_APPEND), "a", live=False, owned=True, turns=turns)
    send(sink, b"{}")
    assert sink.flush(5) == 0
    sink.close()
    assert path.read_bytes() == b'{"half": \n{}\n'


def test_nothing_has_to_be_ended_in_an_empty_file(tmp_path):
    shared = share_sink(SinkSettings(to=f"file:{tmp_path}/a"), KafkaSettings(), live=False, processes=2)
    sink = shared.open(False)
    sink._turns.broken = True
    send(sink, b"{}")
    assert sink.flush(5) == 0
    sink.close()
    shared.close()
    assert (tmp_path / "a").read_bytes() == b"{}\n"


def test_a_count_that_is_of_one_process_says_so():
    descriptor = os.open("/dev/full", os.O_WRONLY)
    sink = lines.Lines(descriptor, "full", live=False, owned=True, turns=lines.Turns())
    send(sink, b"1")
    with pytest.raises(UndeliveredError, match=r"left on device: 0 records were written by this process$"):
        sink.poll()
    sink.close()
