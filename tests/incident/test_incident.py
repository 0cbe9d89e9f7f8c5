"""The accident: on each host of a fleet one copy runs that was started by hand, and supervisord starts a second.

Without the guard every record is in Kafka twice: that is shown first, or the rest would prove nothing. With it, every
second copy is refused, somebody is told on each host, and the second takes over when the first is stopped.

The run with librdkafka's own broker has 3 hosts, to be quick; the one with a real Apache Kafka (marked `broker`) 12, as
many as there were.
"""

import os
import time
from collections import Counter, defaultdict

import pytest
from incident.fleet import LIMIT_SECONDS, ByHand, Fleet, Load, Topic
from kafka import broker as kafka_broker
from network import needs_network
from supervisord import until

pytestmark = pytest.mark.once
HAND_OVER_SECONDS = 10
RECORDED = 30  # exchanges of each host that a part of a test goes on for


@pytest.fixture(scope="module", params=["embedded", pytest.param("kafka", marks=pytest.mark.broker)])
def brokered(request):
    real = request.param == "kafka"
    if real and (reason := kafka_broker.missing()):
        if os.environ.get("HTTP_CAPTURE_REQUIRE_BROKER") == "1":
            pytest.fail(f"the real broker is required here: {reason}")
        pytest.skip(reason)
    with Fleet(12 if real else 3) as made:
        made.open_broker(real=real)
        yield made


@pytest.fixture
def fleet(brokered, tmp_path):
    brokered.use(tmp_path)
    return brokered


@pytest.fixture
def by_hand(fleet):
    """Starts a copy on each host: host -> ByHand, all of which record. What still runs at the end is killed."""
    started = []

    def begin(topic, pidfile, *more):
        copies = {host: ByHand(host, host.folder / pidfile, fleet.broker, topic, *more) for host in fleet.hosts}
        started.extend(copies.values())
        for copy in started:
            copy.until_it_records()
        return copies

    yield begin
    for copy in started:
        if copy.process.poll() is None:
            copy.kill()


def numbers(records):
    """host's name -> instance -> numbers of the complete exchanges; none of them is there twice."""
    found = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.complete:
            found[record.host][record.instance].append(record.number)
    for instances in found.values():
        for instance, listed in instances.items():
            assert len(set(listed)) == len(listed)
            instances[instance] = set(listed)
    return found


@needs_network
@pytest.mark.slow
def test_without_the_guard_every_record_is_there_twice(fleet, by_hand):
    first = by_hand("accident", "by-hand.pid", "--no-interface-lock")
    with fleet.supervised("accident", "--no-interface-lock") as second:
        for supervisord in second.values():
            until(supervisord.instances, LIMIT_SECONDS, supervisord.story)
        with Topic(fleet, "accident") as topic, Load(fleet) as load:

            def story():
                return accounts(fleet, topic, first, second)

            until(lambda: len(topic.read()) >= 2 * RECORDED * len(fleet.hosts), LIMIT_SECONDS, story)
            sent = load.stop()
            exchanges = sum(map(len, sent.values()))
            until(lambda: len(topic.read()) >= 2 * exchanges, LIMIT_SECONDS, lambda: f"{story()}; {exchanges} sent")
            for host, text in verify(fleet, 1).items():
                pids = {first[host].pid, second[host].info()["pid"]}
                faults = [line for line in text.splitlines() if line.startswith("fault: ")]
                assert any(all(f"pid {pid} " in line for pid in pids) for line in faults), text
            for host, done in fleet.run("stop", "--pidfile", "{host.folder}/by-hand.pid"):
                assert (done.returncode, first[host].process.wait(LIMIT_SECONDS)) == (0, 0), done
            for supervisord in second.values():
                supervisord.ask("stopProcess", "http-capture")
            records = topic.read_to_the_end()
    copies = Counter(record.id for record in records)
    assert (len(copies), set(copies.values())) == (exchanges, {2})
    found = numbers(records)
    for host in fleet.hosts:
        instances = {first[host].instance, *second[host].instances()}
        assert len(instances) == 2
        assert found[host.name].keys() == instances
        assert all(seen == set(range(len(sent[host.name]))) for seen in found[host.name].values())


@needs_network
@pytest.mark.slow
def test_with_the_guard_no_record_is_there_twice(fleet, by_hand, capsys):
    first = by_hand("guarded", "http-capture.pid")
    with Topic(fleet, "guarded") as topic, Load(fleet) as load:
        with fleet.supervised("guarded") as second:
            for supervisord in second.values():
                until(lambda: supervisord.said("alert"), LIMIT_SECONDS, supervisord.story)  # noqa: B023
            # One while supervisord itself still tries to start it, the others when it has given that up.
            early, *others = fleet.hosts
            asked = hand_over(fleet, [early], first, second)
            for host in others:
                second[host].until("FATAL", seconds=LIMIT_SECONDS)
            recorders = {record.instance for record in topic.read_to_the_end() if record.host != early.name}
            assert recorders == {first[host].instance for host in others}
            asked |= hand_over(fleet, others, first, second)

            for supervisord in second.values():
                supervisord.until("RUNNING", seconds=LIMIT_SECONDS)
            until(lambda: least(second, numbers(topic.read())) >= RECORDED, LIMIT_SECONDS, lambda: stories(second))
            sent = load.stop()
            ends = {(name, len(times) - 1) for name, times in sent.items()}
            until(lambda: ends <= {(record.host, record.number) for record in topic.read()}, LIMIT_SECONDS)
            verify(fleet, 0, "--expect-supervised")
        records = topic.read_to_the_end()

    alerts = [alert for supervisord in second.values() for alert in supervisord.said("alert")]
    assert [(alert["host"], alert["holder"] and alert["holder"]["pid"]) for alert in alerts] == [
        (host.name, copy.pid) for host, copy in first.items()
    ]
    for host, supervisord in second.items():
        refused = supervisord.refusals()
        assert len(refused) == supervisord.starts() - 1 > 0
        assert {(line["exit"], line["holder"]["pid"], line["holder"]["launcher"]) for line in refused} == {
            (75, first[host].pid, "by hand")
        }
        if host in others:
            assert len(supervisord.said("started")) == 1, "the listener starts what is FATAL"

    assert set(Counter(record.id for record in records).values()) == {1}
    found = numbers(records)
    story = []
    for host in fleet.hosts:
        times = sent[host.name]
        (instance,) = second[host].instances()
        assert found[host.name].keys() == {first[host].instance, instance}
        before, after = found[host.name][first[host].instance], found[host.name][instance]
        last, begin = max(before), min(after)
        assert before == set(range(last + 1))
        assert after == set(range(begin, len(times)))
        assert last < begin
        lost = begin - last - 1
        halves = [record for record in records if record.host == host.name and not record.complete]
        assert all(last < record.number < begin for record in halves)
        assert len(halves) <= 2, "each of the two may have seen one side of an exchange"
        assert times[begin] - asked[host] < HAND_OVER_SECONDS
        story.append(
            f"{host}: {len(times)} exchanges sent, {len(before) + len(after)} recorded, {lost} lost"
            f" in {times[begin] - times[last]:.1f} s, {len(halves)} in halves;"
            f" {times[begin] - asked[host]:.1f} s after the stop was asked for"
        )
    with capsys.disabled():
        print("\nhand-over", *story, sep="\n  ")


def hand_over(fleet, hosts, first, second):
    """Stops the copies by hand, one after the other, so that the machine is not what takes long. Returns when each was
    asked to stop, after the supervised one records."""
    verify(fleet, 0, hosts=hosts)
    asked = {}
    for host in hosts:
        asked[host] = time.monotonic()
        ((_, done),) = fleet.run("stop", "--pidfile", "{host.folder}/http-capture.pid", hosts=[host])
        assert (done.returncode, first[host].process.wait(LIMIT_SECONDS)) == (0, 0), done
        until(second[host].instances, LIMIT_SECONDS, second[host].story)
    return asked


def verify(fleet, code, *more, hosts=None):
    """`http-capture verify` on the hosts; host -> what it printed."""
    found = {}
    for host, done in fleet.run(
        "verify", "--pidfile", "{host.folder}/http-capture.pid", "--iface", "eth1", *more, hosts=hosts
    ):
        assert done.returncode == code, done
        found[host] = done.stdout
    return found


def least(second, found):
    """The number of exchanges of that host of which the supervised copy has recorded least."""
    return min(len(found[host.name][supervisord.instances()[-1]]) for host, supervisord in second.items())


def accounts(fleet, topic, first, second):
    """Stops all copies. What each has in the topic, before that and after, and of the three that have least what they
    said, with their ledgers. What matters most is last: of the output of a failed CI run the end is kept."""
    before = Counter(record.instance for record in topic.read())
    network = fleet.connections_to_broker()
    list(fleet.run("stop", "--pidfile", "{host.folder}/by-hand.pid"))
    for supervisord in second.values():
        supervisord.ask("stopProcess", "http-capture")
    after = Counter(record.instance for record in topic.read_to_the_end())
    copies = [("by hand", copy.host, copy.instance, copy.said()) for copy in first.values()]
    copies += [
        ("supervised", host, supervisord.instances()[-1], supervisord.errors.read_text())
        for host, supervisord in second.items()
    ]
    copies.sort(key=lambda copy: before[copy[2]])
    counts = [f"{host} {kind} {before[instance]}, {after[instance]}" for kind, host, instance, _ in copies]
    warnings = [line for line in fleet.said_by_broker().splitlines() if " WARN " in line or " ERROR " in line]
    return "\n".join((*(text for *_, text in copies[:3]), *network, *warnings[-5:], "; ".join(counts)))


def stories(second):
    return "\n".join(supervisord.story() for supervisord in second.values())
