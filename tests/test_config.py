"""Settings: the layers, the two steps, and what an operator is told."""

import os
import re
import subprocess
import sys
from pathlib import Path

import http_capture.config.loading as loading
import msgspec
import pytest
from http_capture.capture.errors import ConfigurationError, UsageError
from http_capture.config.settings import KafkaSettings, Settings, SinkSettings, SourceSettings, TcpSettings

SAMPLE = Path(loading.__file__).with_name("http-capture.toml")


def load(path="", environ=None, flags=None):
    return loading.convert(*loading.layers(str(path), environ or {}, flags or {}))


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "a.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_nothing_given_is_the_defaults():
    assert load() == Settings()


# --- the file that shows every setting


def uncommented() -> str:
    return re.sub(r"^#(?=[^ \n])", "", SAMPLE.read_text(), flags=re.MULTILINE)


def test_sample_file_as_shipped_is_the_defaults():
    assert load(SAMPLE) == Settings()


def test_sample_file_uncommented_is_every_setting_with_its_default(toml):
    path = toml(uncommented().replace('to = ""', 'to = "stdout"'))  # brokers that are set must not be empty else
    values, _ = loading.layers(str(path), {}, {})
    assert {table: set(keys) for table, keys in values.items()} == {
        table.name: {key.name for key in msgspec.structs.fields(table.type)}
        for table in msgspec.structs.fields(Settings)
    }
    assert load(path) == Settings(sink=SinkSettings(to="stdout"))


def test_sample_file_explains_every_setting():
    lines = SAMPLE.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"#[a-z_]+ = ", line):
            assert lines[number - 1].startswith("# "), line
        assert len(line) <= 120


# --- the layers


def test_each_layer_lies_over_the_one_before(toml):
    path = toml("[tcp]\nmax_connections = 1\nidle_timeout_seconds = 1\nclosing_timeout_seconds = 1\n")
    environ = {"HTTP_CAPTURE_TCP_MAX_CONNECTIONS": "2", "HTTP_CAPTURE_TCP_IDLE_TIMEOUT_SECONDS": "2"}
    flags = {"tcp": {"max_connections": 3}}
    assert load(path, environ, flags).tcp == TcpSettings(
        max_connections=3, idle_timeout_seconds=2.0, closing_timeout_seconds=1.0
    )


def test_a_flag_that_was_not_given_is_none_or_absent():
    assert load(flags={"tcp": {"max_connections": None}, "sink": {}}) == Settings()


def test_config_file_from_the_environment_and_the_flag_over_it(toml, tmp_path):
    path = toml("[log]\nlevel = 'debug'\n")
    assert load(environ={"HTTP_CAPTURE_CONFIG": str(path)}).log.level == "debug"
    assert load(path, {"HTTP_CAPTURE_CONFIG": str(tmp_path / "absent")}).log.level == "debug"
    assert load(environ={"HTTP_CAPTURE_CONFIG": ""}) == Settings()


def test_variables_of_the_build_are_no_settings():
    build = re.findall(r'environ.get\("(HTTP_CAPTURE_\w+)"', Path(__file__).parents[1].joinpath("setup.py").read_text())
    assert len(build) >= 3
    assert load(environ=dict.fromkeys(build, "skip") | {"PATH": "/"}) == Settings()


# (file, environment, flags) of [source], and what is left of it


@pytest.mark.parametrize(
    ("layers", "iface", "read"),
    [
        ((("iface",), (), ("read",)), (), ("2",)),
        ((("read",), (), ("iface",)), ("2",), ()),
        ((("iface",), ("read",), ()), (), ("1",)),
        (((), ("iface",), ("read",)), (), ("2",)),
        ((("iface",), ("read",), ("iface",)), ("2",), ()),
        ((("iface", "read"), (), ("read",)), (), ("2",)),
        ((("read",), ("iface", "read"), ("iface",)), ("2",), ()),
    ],
)
def test_a_source_of_a_higher_layer_takes_the_place_of_the_other_kind(toml, layers, iface, read):
    texts, variables, given = layers
    merged = loading.layers(
        str(toml("[source]\n" + "".join(f"{key} = ['0']\n" for key in texts))),
        {f"HTTP_CAPTURE_SOURCE_{key.upper()}": "1" for key in variables},
        {"source": dict.fromkeys(given, ("2",))},
    )
    assert loading.guard_part(*merged)[1] == iface
    assert loading.reads(*merged) is bool(read)
    source = loading.convert(*merged).source
    assert (source.iface, source.read) == (iface, read)


@pytest.mark.parametrize("empty", ["", " , ", (), []])
def test_an_empty_source_takes_no_place(toml, empty):
    path = toml("[source]\niface = ['eth0']\n")
    merged = loading.layers(str(path), {}, {"source": {"read": empty}})
    assert loading.guard_part(*merged)[1] == ("eth0",)
    assert loading.reads(*merged) is False
    assert loading.convert(*merged).source == SourceSettings(iface=("eth0",))


def test_both_sources_of_one_layer_are_an_error_that_names_it(toml):
    path = toml("[source]\niface = 'a'\nread = 'b'\n")
    variables = {"HTTP_CAPTURE_SOURCE_IFACE": "a", "HTTP_CAPTURE_SOURCE_READ": "b"}
    for given, kind, says in (
        ((str(path), {}, {}), ConfigurationError, f"{path}: [source] iface and read"),
        (("", variables, {}), ConfigurationError, " HTTP_CAPTURE_SOURCE_IFACE and HTTP_CAPTURE_SOURCE_READ"),
        (("", {}, {"source": {"iface": ("a",), "read": ("b",)}}), UsageError, "--iface and --read"),
    ):
        with pytest.raises(kind, match=re.escape(f"{says} exclude each other: a run has one source")):
            loading.reads(*loading.layers(*given))


@pytest.mark.parametrize(
    ("table", "key", "text", "value"),
    [
        ("kafka", "brokers", "a:1, b:2,", ("a:1", "b:2")),
        ("record", "redact_names", "", ()),
        ("source", "iface", "eth0", ("eth0",)),
        ("guard", "interface_lock", "no", False),
        ("guard", "interface_lock", "Off", False),
        ("guard", "interface_lock", "0", False),
        ("guard", "interface_lock", "false", False),
        ("record", "redact", "1", True),
        ("record", "redact", "yes", True),
        ("record", "redact", "on", True),
        ("record", "redact", "TRUE", True),
        ("tcp", "reorder_seconds", "0.5", 0.5),
        ("tcp", "reorder_seconds", "1", 1.0),
        ("body", "keep", "all", "all"),
        ("log", "file", "", ""),
        ("sink", "to", "file:/a,b", "file:/a,b"),
    ],
)
def test_a_text_from_the_environment_or_a_flag_becomes_the_type(table, key, text, value):
    for settings in (
        load(environ={f"HTTP_CAPTURE_{table}_{key}".upper(): text}),
        load(flags={table: {key: text}}),
    ):
        assert getattr(getattr(settings, table), key) == value


def test_librdkafka_is_joined_key_by_key_in_each_notation(toml):
    path = toml("[kafka.librdkafka]\n'linger.ms' = 1\nsocket.keepalive.enable = true\n'batch.size' = 7\n")
    environ = {"HTTP_CAPTURE_KAFKA_LIBRDKAFKA_LINGER_MS": "2", "HTTP_CAPTURE_KAFKA_LIBRDKAFKA_SASL_PASSWORD": "x"}
    flags = {"kafka": {"librdkafka": {"batch.size": "8"}}}
    assert load(path, environ, flags).kafka.librdkafka == {
        "linger.ms": "2",
        "socket.keepalive.enable": True,
        "batch.size": "8",
        "sasl.password": "x",
    }


def test_file_may_give_a_list_as_a_text_and_a_whole_number_for_seconds(toml):
    settings = load(toml("[kafka]\nbrokers = 'a:1,b:2'\nflush_timeout_seconds = 5\n"))
    assert settings.kafka == KafkaSettings(brokers=("a:1", "b:2"), flush_timeout_seconds=5.0)
    assert load(toml("[source]\niface = ['eth0', 'eth1']\n")).source == SourceSettings(iface=("eth0", "eth1"))


# --- what the guard needs


def test_guard_part_has_the_defaults_of_the_settings():
    defaults = Settings()
    assert loading.guard_part({}, {}) == (
        defaults.guard.pidfile,
        defaults.source.iface,
        defaults.guard.interface_lock,
    )


@pytest.mark.parametrize(
    ("environ", "flags"),
    [
        ({"HTTP_CAPTURE_GUARD_PIDFILE": "/a", "HTTP_CAPTURE_SOURCE_IFACE": "eth0,eth1"}, {}),
        ({}, {"guard": {"pidfile": "/a", "interface_lock": False}, "source": {"iface": ["eth0"]}}),
        ({"HTTP_CAPTURE_GUARD_INTERFACE_LOCK": "off"}, {"source": {"iface": "eth0, eth1"}}),
    ],
)
def test_guard_part_is_what_convert_gives(environ, flags):
    merged = loading.layers("", environ, flags)
    settings = loading.convert(*merged)
    assert loading.guard_part(*merged) == (
        settings.guard.pidfile,
        settings.source.iface,
        settings.guard.interface_lock,
    )


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, Settings().guard.die_with_parent),
        ({"HTTP_CAPTURE_GUARD_DIE_WITH_PARENT": "on"}, True),
        ({"HTTP_CAPTURE_GUARD_DIE_WITH_PARENT": "off"}, False),
    ],
)
def test_dies_with_parent_is_what_convert_gives(environ, wanted):
    merged = loading.layers("", environ, {})
    assert loading.dies_with_parent(*merged) is loading.convert(*merged).guard.die_with_parent is wanted


def test_dies_with_parent_refuses_what_it_cannot_use(toml):
    path = toml("[guard]\ndie_with_parent = 'perhaps'\n")
    with pytest.raises(ConfigurationError) as caught:
        loading.dies_with_parent(*loading.layers(str(path), {}, {}))
    assert str(caught.value) == f"{path}: [guard] die_with_parent is 'perhaps': must be true or false"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[guard]\npidfile = 7\n", "[guard] pidfile is 7: must be a path"),
        ("[guard]\npidfile = ''\n", "[guard] pidfile is '': must be a path"),
        ("[guard]\ninterface_lock = 'maybe'\n", "[guard] interface_lock is 'maybe': must be true or false"),
        ("[source]\niface = 5\n", "[source] iface is 5: must be a list of texts"),
        ("[source]\niface = [5]\n", "[source] iface is [5]: must be a list of texts"),
    ],
)
def test_guard_part_refuses_what_it_cannot_use(toml, text, says):
    path = toml(text)
    with pytest.raises(ConfigurationError) as caught:
        loading.guard_part(*loading.layers(str(path), {}, {}))
    assert str(caught.value) == f"{path}: {says}"


def test_the_first_step_imports_nothing_heavy(toml):
    path = toml("[tcp]\nmax_connections = 1\n")
    code = (
        "import sys; before = set(sys.modules); from http_capture.config import loading as l\n"
        "l.guard_part(*l.layers(sys.argv[1], {'HTTP_CAPTURE_LOG_LEVEL': 'debug'}, {}))\n"
        "print(*(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert "tomllib" in loaded
    assert not loaded & {"msgspec", "confluent_kafka", "scapy", "rich", "logging", "difflib", "dataclasses", "asyncio"}


# --- what an operator is told: one line, the key, where, what


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tcp]\nmax_conections = 1\n", ": [tcp] max_conections is not a setting: did you mean [tcp] max_connections?"),
        (
            "[http]\nmax_connections = 1\n",
            ": [http] max_connections is not a setting: did you mean [tcp] max_connections?",
        ),
        ("max_connections = 1\n", ": max_connections is not a setting: did you mean [tcp] max_connections?"),
        ("[tpc]\n", ": [tpc] is not a setting: did you mean [tcp]?"),
        ("tcp = 1\n", ": tcp must be a table, [tcp]"),
        ("[tcp]\nmax_connections = 'abc'\n", ": [tcp] max_connections is 'abc': must be a whole number, at least 1"),
        ("[tcp]\nmax_connections = 0\n", ": [tcp] max_connections is 0: must be a whole number, at least 1"),
        ("[tcp]\nmax_connections = true\n", ": [tcp] max_connections is True: must be a whole number, at least 1"),
        ("[tcp.max_connections]\na = 1\n", ": [tcp] max_connections is {'a': 1}: must be a whole number, at least 1"),
        ("[tcp]\nidle_timeout_seconds = inf\n", ": [tcp] idle_timeout_seconds is inf: must be a number, above 0"),
        ("[tcp]\nidle_timeout_seconds = nan\n", ": [tcp] idle_timeout_seconds is nan: must be a number, above 0"),
        ("[tcp]\nmax_connections = 9223372036854775808\n", "9223372036854775808: must be a whole number, at least 1"),
        ("[source]\nring_timeout_ms = 0\n", "ring_timeout_ms is 0: must be a whole number, at least 1, at most 10000"),
        ("[body]\nkeep = 'some'\n", ": [body] keep is 'some': must be one of all, none, text"),
        ("[record]\nredact = 2\n", ": [record] redact is 2: must be true or false"),
        ("[record]\nredact_names = [1]\n", ": [record] redact_names is [1]: must be a list of texts"),
        ("[kafka]\ntopic = ''\n", ": [kafka] topic is '': must be a text of 1 to 249 characters"),
        ("[kafka]\nlibrdkafka = 'a=secret'\n", ": [kafka] librdkafka must be a table, [kafka.librdkafka]"),
        ("[kafka.librdkafka]\n'a.b' = inf\n", ": [kafka] librdkafka.a.b must be a text, a number, true or false"),
        (
            "[kafka.librdkafka]\n'a.b' = 0x" + "f" * 5000 + "\n",
            ": [kafka] librdkafka.a.b must be a text, a number, true or false",
        ),
        (
            "[kafka.librdkafka]\n'a.b' = ['secret']\n",
            ": [kafka] librdkafka.a.b must be a text, a number, true or false",
        ),
        (
            "[log]\nlevel = 2026-01-01\n",
            ": [log] level is datetime.date(2026, 1, 1): must be one of debug, error, info, warning",
        ),
        ("[tcp]\nmax_connections\n", ", line 2, column 16: Expected '=' after a key in a key/value pair"),
        ("[tcp\n", ", line 1, column 5: Expected ']' at the end of a table declaration"),
        (b"[tcp]\n# \xff\n", ", line 2: not UTF-8: save the file as UTF-8"),
        ("a = " + "[" * 5000, ": nested too deeply"),
        ("[kafka.librdkafka]\n" + "a." * 5000 + "a = 1\n", ": nested too deeply"),
        ("[tcp]\nmax_connections." + "a." * 5000 + "a = 1\n", ": nested too deeply"),
        ("[tcp]\nmax_connections = 0x" + "f" * 5000 + "\n", ": [tcp] max_connections is a number of thousands"),
        ("[tcp]\n'a\\nb' = 1\n".replace("'", '"'), ": [tcp] a\\nb is not a setting"),
        ("a = " + "1" * 5000, ""),
        ("# " + "x" * (1 << 20), " is larger than 1048576 bytes: it is no file of settings"),
    ],
)
def test_a_mistake_in_the_file(toml, text, says):
    path = toml(text)
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("TCP_MAX_CONECTIONS", "1", " is not a setting: did you mean HTTP_CAPTURE_TCP_MAX_CONNECTIONS?"),
        ("MAX_CONNECTIONS", "1", " is not a setting: did you mean"),
        ("TCP", "1", " is not a setting: "),
        ("XYZZY", "1", " is not a setting: after HTTP_CAPTURE_ comes one of GUARD_, PROCESS_, SOURCE_, "),
        ("TPC", "1", " is not a setting: did you mean HTTP_CAPTURE_TCP_...?"),
        ("TCP_ZZZZZZZZZZZZZZZZZZZ", "1", " is not a setting: after HTTP_CAPTURE_TCP_ comes one of MAX_CONNECTIONS, "),
        ("KAFKA_LIBRDKAFK", "1", " is not a setting: did you mean HTTP_CAPTURE_KAFKA_LIBRDKAFKA_...?"),
        ("TCP_MAX_CONNECTIONS", "", " is '': must be a whole number, at least 1"),
        ("GUARD_INTERFACE_LOCK", "maybe", " is 'maybe': must be true or false"),
        ("KAFKA_LIBRDKAFKA", "a=secret", " must go on with a name, as in HTTP_CAPTURE_KAFKA_LIBRDKAFKA_LINGER_MS"),
    ],
)
def test_a_mistake_in_the_environment(name, value, says):
    with pytest.raises(ConfigurationError) as caught:
        load(environ={"HTTP_CAPTURE_" + name: value})
    assert str(caught.value).startswith(f"the environment variable HTTP_CAPTURE_{name}{says}")


def test_a_mistake_in_a_flag():
    with pytest.raises(ConfigurationError, match=r"^the command line: \[body\] keep is 'x': must be one of"):
        load(flags={"body": {"keep": "x"}})
    with pytest.raises(ConfigurationError, match=r"^the command line: \[kafka\] librdkafka must be .* KEY=VALUE$"):
        load(flags={"kafka": {"librdkafka": "secret"}})


# --- numbers


def numbers():
    for table in msgspec.structs.fields(Settings):
        for key in msgspec.structs.fields(table.type):
            kind = msgspec.inspect.type_info(key.type)
            if isinstance(kind, msgspec.inspect.IntType | msgspec.inspect.FloatType):
                yield pytest.param(table.name, key.name, kind, id=f"{table.name}.{key.name}")


@pytest.mark.parametrize(("table", "key", "kind"), [*numbers()])
def test_each_number_has_bounds_that_an_error_names(table, key, kind):
    assert kind.le is not None
    # Ten reorder windows in ns, after the latest time that a pcap file can have; of others, room for products.
    largest = kind.le * 10**9 * 10 + 2**32 * 10**9 if key.endswith("_seconds") else kind.le * 2**10
    assert largest < 2**63
    assert getattr(getattr(load(flags={table: {key: str(kind.le)}}), table), key) == kind.le
    for wrong in (str(kind.le + 1), kind.le + 1, "9" * 30, "9" * 5000, "-1", "inf", "1e400", "nan", 1 << 70):
        with pytest.raises(ConfigurationError) as caught:
            load(flags={table: {key: wrong}})
        assert f"[{table}] {key} is " in str(caught.value)
        assert f", at most {kind.le}" in str(caught.value)


# --- texts


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("tcp", "max_connections"), ("tcp", "idle_timeout_seconds"), ("workers", "count"), ("guard", "interface_lock"),
        ("source", "kind"), ("source", "filter"), ("process", "user"), ("record", "redact"), ("record", "redact_names"),
        ("record", "redact_headers"), ("kafka", "brokers"), ("kafka", "topic"), ("log", "level"),
    ],
)  # fmt: skip
def test_a_text_that_is_not_utf_8(table, key):
    for value in ("p\udce4ss", "a,\udcff", ("a", "\udcff")):
        if isinstance(value, str) or key.startswith("redact_") or key == "brokers":
            with pytest.raises(ConfigurationError) as caught:
                load(flags={table: {key: value}})
            assert str(caught.value) == f"the command line: [{table}] {key} is not UTF-8: write it in UTF-8"


def test_a_nic_whose_name_is_not_utf_8_is_refused_before_the_guard():
    merged = loading.layers("", {"HTTP_CAPTURE_SOURCE_IFACE": "eth\udcff"}, {})
    for step in (loading.guard_part, loading.convert):
        with pytest.raises(ConfigurationError) as caught:
            step(*merged)
        assert str(caught.value) == "the environment variable HTTP_CAPTURE_SOURCE_IFACE is not UTF-8: write it in UTF-8"


def test_a_setting_of_librdkafka_that_is_not_utf_8_is_not_shown():
    for environ, given, name in (
        ({"HTTP_CAPTURE_KAFKA_LIBRDKAFKA_SASL_PASSWORD": "p\udce4ss"}, {}, "_KAFKA_LIBRDKAFKA_SASL_PASSWORD"),
        ({}, {"sasl.password": "p\udce4ss"}, "the command line: [kafka] librdkafka.sasl.password"),
        ({}, {"\udcff": "pass"}, "the command line: [kafka] librdkafka.\\udcff"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            load(environ=environ, flags={"kafka": {"librdkafka": given}})
        assert name in str(caught.value)
        assert str(caught.value).endswith(" is not UTF-8: write it in UTF-8")
        assert "ss" not in str(caught.value).replace("password", "").replace("PASSWORD", "")


def test_a_path_may_have_any_bytes():
    settings = load(
        flags={
            "guard": {"pidfile": "/\udcff"}, "source": {"read": ("\udcff",)}, "sink": {"to": "file:\udcff"},
            "log": {"file": "\udcff"},
        }
    )  # fmt: skip
    assert (settings.guard.pidfile, settings.source.read, settings.sink.to, settings.log.file) == (
        "/\udcff", ("\udcff",), "file:\udcff", "\udcff",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("log", "file = 'a\\u0000b'"), ("source", "read = ['a', 'a\\u0000b']"), ("source", "read = 'a\\u0000b'"),
        ("source", "iface = ['a\\u0000b']"), ("sink", "to = 'file:a\\u0000b'"), ("process", "user = 'a\\u0000b'"),
        ("kafka", "topic = 'a\\u0000b'"), ("kafka", "brokers = ['a\\u0000b:1']"),
        ("kafka.librdkafka", "x = 'a\\u0000b'"), ("kafka.librdkafka", "'a\\u0000b' = 1"),
    ],
)  # fmt: skip
def test_a_nul_character(toml, table, line):
    path = toml(f"[{table}]\n{line}\n".replace("'", '"'))
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: [{table.partition('.')[0]}] ")
    assert str(caught.value).endswith(" has a NUL character: remove it")
    assert "\0" not in str(caught.value)


# --- where records go


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (("[kafka]\nbrokers = ''\n", {}, {}), ": [kafka] brokers"),
        (("[kafka]\nbrokers = []\n", {}, {}), ": [kafka] brokers"),
        (("", {"HTTP_CAPTURE_KAFKA_BROKERS": ""}, {}), "the environment variable HTTP_CAPTURE_KAFKA_BROKERS"),
        (("", {}, {"kafka": {"brokers": ""}}), "the command line: [kafka] brokers"),
        (("", {}, {"kafka": {"brokers": " , "}, "sink": {"to": "kafka"}}), "the command line: [kafka] brokers"),
        (("[kafka]\nbrokers = 'a:1'\n", {}, {"kafka": {"brokers": ""}}), "the command line: [kafka] brokers"),
    ],
)
def test_brokers_that_are_set_and_empty(toml, given, name):
    text, environ, flags = given
    path = toml(text)
    with pytest.raises(ConfigurationError) as caught:
        load(path, environ, flags)
    assert f"{name} is empty: name at least one, HOST:PORT, or " in str(caught.value)


@pytest.mark.parametrize("to", ["stdout", "null", "file:/a"])
def test_empty_brokers_and_another_sink(to):
    assert load(environ={"HTTP_CAPTURE_KAFKA_BROKERS": ""}, flags={"sink": {"to": to}}).sink.to == to


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("@bad@", "is '@bad@', which does not exist: it is one of kafka, stdout, null, file:PATH"),
        ("file:", "is 'file:', which needs a path: file:PATH"),
        ("har:/a", "is 'har:/a', which is not available yet: use file:PATH, one JSON document a line"),
        ("kafka", "is 'kafka', which needs brokers: set [kafka] brokers, or give --brokers HOST:PORT,..."),
    ],
)
def test_a_wrong_sink_is_told_with_where_it_was_set(toml, to, says):
    path = toml(f"[sink]\nto = '{to}'\n")
    for given, name in (
        ((path, {}, {}), f"{path}: [sink] to"),
        (("", {"HTTP_CAPTURE_SINK_TO": to}, {}), "the environment variable HTTP_CAPTURE_SINK_TO"),
        (("", {}, {"sink": {"to": to}}), "the command line: [sink] to"),
    ):
        if to == "kafka" and not given[0] and not given[1]:
            assert load(*given).sink.to == to  # the sink says it, as a mistake in the command line
            continue
        with pytest.raises(ConfigurationError) as caught:
            load(*given)
        assert str(caught.value) == f"{name} {says}"


def test_a_long_value_is_not_shown_whole():
    with pytest.raises(ConfigurationError) as caught:
        load(flags={"body": {"keep": "x" * 5000}})
    assert len(str(caught.value)) < 200


def test_a_file_that_cannot_be_read(tmp_path):
    for path, why in ((tmp_path / "absent", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigurationError, match=re.escape(str(path)) + ".*" + why):
            load(path)
    with pytest.raises(ConfigurationError, match=r"settings in a\\nb: No such file"):
        load("a\nb")
    if os.getuid():
        closed = tmp_path / "closed"
        closed.touch(mode=0)
        with pytest.raises(ConfigurationError, match="Permission denied"):
            load(closed)
