"""Standard output, a file, nowhere: whole lines, exact counts, and what happens when writing fails."""

import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import threading
import time

import pytest
from http_capture.capture.errors import NotPermittedError, UndeliveredError, UsageError
from http_capture.capture.sink import SinkStats, lines, open_sink
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
    for before, after in ((b"old\n", b"old\nnew\n"), (b"old\nhal", b"old\nhal\nnew\n")):
        path.write_bytes(before)
        sink = opened(f"file:{path}")
        send(sink, b"new")
        sink.flush(1)
        sink.close()
        assert path.read_bytes() == after
    assert caplog.text.count("partial line") == 1


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
    path.write_bytes(b"before\n")
    out = limited(path, 100_500, live=False)
    assert f"cannot write {path}: File too large: 100 records were written" in out
    assert "300 SinkStats(records=400, bytes=399600, delivered=100, pending=0, undelivered={'too_large': 300})" in out
    data = path.read_bytes()
    assert len(data) == 7 + 100 * 1000
    assert [line[:4] for line in data.splitlines()[1:]] == [b"%04d" % number for number in range(100)]


def test_for_a_nic_the_next_block_is_tried_again(tmp_path):
    path = tmp_path / "a"
    out = limited(path, 270_500, live=True)  # the first block (263 records) fits, the second (137) in part
    assert "went on" in out
    assert "130 SinkStats(records=400, bytes=399600, delivered=270, pending=0, undelivered={'too_large': 130})" in out
    assert path.stat().st_size == 270_000


@pytest.fixture
def frozen(tmp_path):
    """A folder on a file system of its own, and what holds back every write to it until it is called again."""
    if os.getuid() or not all(map(shutil.which, ("mkfs.ext4", "mount", "fsfreeze"))):
        pytest.skip("needs root, mkfs.ext4 (e2fsprogs), mount and fsfreeze (util-linux) for a disk that stands still")
    image, folder = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, folder], check=False).returncode:
        pytest.skip("needs a loop device for a disk that stands still")
    state = [False]

    def freeze(*, thaw=False):
        subprocess.run(["fsfreeze", "-u" if thaw else "-f", folder], check=True)
        state[0] = not thaw

    try:
        yield folder, freeze
    finally:
        if state[0]:
            freeze(thaw=True)
        for _ in range(100):  # what was held back may be written still
            if not subprocess.run(["umount", folder], check=False, stderr=subprocess.DEVNULL).returncode:
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"{folder} cannot be unmounted: something has a file in it open")


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
