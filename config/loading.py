"""Settings from defaults < `--config` TOML < environment < flags, in two steps.

1. `layers`, `guard_part`, `reads` and `dies_with_parent` need the standard library only: the guard is held before
   anything heavy is imported.
2. `convert` knows the schema (settings.py, msgspec): every key and value is checked there.

What the operating system gives as a text may have bytes that are not UTF-8 (surrogates, PEP 383): a path may, any other
value is refused. A librdkafka value is never shown: it may be secret.

The environment: `HTTP_CAPTURE_<TABLE>_<KEY>`; a list is separated by commas. `HTTP_CAPTURE_KAFKA_LIBRDKAFKA_LINGER_MS`
is `"linger.ms"` of `[kafka.librdkafka]`: no name there has an underscore. `HTTP_CAPTURE_CONFIG` is `--config`.
A text stands for the type that is wanted: yes, no, on, off, true, false, 1, 0 for a switch.

Every error is a ConfigurationError of one line that names the key and where it was set.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..capture.errors import ConfigurationError, OperatorError, UsageError

if TYPE_CHECKING:
    from .settings import Settings

PREFIX = "HTTP_CAPTURE_"
ENVIRONMENT = "the environment variable "
COMMAND_LINE = "the command line"
NOT_SETTINGS = frozenset(
    {"HTTP_CAPTURE_CONFIG", "HTTP_CAPTURE_EXTENSIONS", "HTTP_CAPTURE_CHECKED", "HTTP_CAPTURE_PROFILE"}
)  # --config, and those of setup.py
PATHS = frozenset({("guard", "pidfile"), ("source", "read"), ("sink", "to"), ("log", "file")})
SINKS = ("kafka", "stdout", "null")
MAX_FILE_BYTES = 1 << 20
MAX_DEPTH = 100  # of tables and lists in the file
SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

Values = dict[str, dict[str, Any]]  # table -> key -> value as it was written
Origins = dict[tuple[str, str], str]  # (table, key) -> where the value was set, in words
Flags = Mapping[str, Mapping[str, Any]]  # as Values; only what was given


def layers(config_path: str, environ: Mapping[str, str], flags: Flags) -> tuple[Values, Origins]:
    """Lays the layers over each other, the keys and values unchecked.

    `config_path` empty: HTTP_CAPTURE_CONFIG, and no file where that is not set either. Of `[kafka.librdkafka]` the
    layers are joined key by key; any other value is replaced as a whole. A run has one source: a NIC or files of a
    higher layer take the place of the other kind in a lower one too. Defaults are not in what is returned.
    """
    values: Values = {}
    origins: Origins = {}
    heights: dict[tuple[str, str], int] = {}  # (table, key) -> the layer that set it

    def lay(height: int, table: str, key: str, value: Any, origin: str) -> None:
        keys = values.setdefault(table, {})
        if (table, key) == ("kafka", "librdkafka") and isinstance(value, dict):
            value = _dotted(value)
            for name in value:
                origins[table, f"{key}.{name}"] = origin
            if isinstance(keys.get(key), dict):
                value = {**keys[key], **value}
        keys[key] = value
        origins[table, key] = origin
        heights[table, key] = height

    path = config_path or environ.get("HTTP_CAPTURE_CONFIG", "")
    if path:
        for table, keys in _file(path).items():
            if isinstance(keys, dict):
                values.setdefault(table, {})
                origins[table, ""] = path
                for key, value in keys.items():
                    lay(0, table, key, value, path)
            else:
                lay(0, "", table, keys, path)
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in NOT_SETTINGS:
            table, _, key = name.removeprefix(PREFIX).lower().partition("_")
            value = environ[name]
            if table == "kafka" and key.startswith("librdkafka_"):
                key, value = "librdkafka", {key.removeprefix("librdkafka_").replace("_", "."): value}
            lay(1, table, key, value, ENVIRONMENT + name)
    for table, given in flags.items():
        for key, value in given.items():
            if value is not None:
                lay(2, table, key, value, COMMAND_LINE)
    iface, read = ("source", "iface"), ("source", "read")
    if _given(values, "iface") and _given(values, "read") and heights[iface] != heights[read]:
        lower = min(iface, read, key=heights.__getitem__)
        del values["source"][lower[1]], origins[lower]
    return values, origins


def _given(values: Values, kind: str) -> bool:
    """Whether there is any of this kind of source."""
    return bool(_words(values.get("source", {}).get(kind)))


def guard_part(values: Values, origins: Origins) -> tuple[str, tuple[str, ...], bool]:
    """What the guard needs: (pidfile, ifaces, interface_lock). A test holds the defaults here and in settings.py
    together; `convert` still checks all of it."""
    pidfile = values.get("guard", {}).get("pidfile", "/run/http-capture.pid")
    if not isinstance(pidfile, str) or not pidfile or "\0" in pidfile:
        raise _bad(origins, "guard", "pidfile", pidfile, "a path")
    lock = _guard_switch(values, origins, "interface_lock", True)
    ifaces = _words(values.get("source", {}).get("iface", ()))
    if not isinstance(ifaces, list | tuple) or not all(isinstance(name, str) for name in ifaces):
        raise _bad(origins, "source", "iface", ifaces, "a list of texts")
    _check_texts(origins, "source", "iface", ifaces)
    return pidfile, tuple(ifaces), lock


def reads(values: Values, origins: Origins) -> bool:
    """Whether the source is capture files, and no NIC. Raises an OperatorError where one layer asks for both."""
    if not (_given(values, "iface") and _given(values, "read")):
        return _given(values, "read")
    name, other = _name(origins, "source", "iface"), origins["source", "read"]
    kind: type[OperatorError] = ConfigurationError
    if other == COMMAND_LINE:
        kind, name, other = UsageError, "--iface", "--read"
    elif other.startswith(ENVIRONMENT):
        other = other.removeprefix(ENVIRONMENT)
    else:
        other = "read"
    raise kind(f"{name} and {other} exclude each other: a run has one source, leave one of them out")


def dies_with_parent(values: Values, origins: Origins) -> bool:
    """`[guard] die_with_parent`, likewise."""
    return _guard_switch(values, origins, "die_with_parent", False)


def _guard_switch(values: Values, origins: Origins, key: str, default: bool) -> bool:
    value = _switch(values.get("guard", {}).get(key, default))
    if not isinstance(value, bool):
        raise _bad(origins, "guard", key, value, "true or false")
    return value


def convert(values: Values, origins: Origins) -> "Settings":
    """Checks everything and gives the settings. Imports msgspec."""
    from msgspec.structs import fields

    from .settings import Settings

    known = {table.name: {key.name: key.type for key in fields(table.type)} for table in fields(Settings)}
    tables = {}
    for table, keys in values.items():
        for key in keys or ("",):
            if key not in known.get(table, {}) and (keys or table not in known):
                raise _unknown(origins, table, key, known)
        tables[table] = {key: _value(origins, table, key, value, known[table][key]) for key, value in keys.items()}
    settings = Settings(**{table.name: table.type(**tables.get(table.name, {})) for table in fields(Settings)})
    _check_sink(settings, origins)
    return settings


def sink_fault(to: str) -> str:
    """What is wrong with it as `[sink] to`, and what to do; empty: nothing."""
    name, _, path = to.partition(":")
    if to in ("", *SINKS) or (name == "file" and path):
        return ""
    if name == "file":
        return "needs a path: file:PATH"
    if name == "har":
        return "is not available yet: use file:PATH, one JSON document a line"
    return f"does not exist: it is one of {', '.join(SINKS)}, file:PATH"


def _check_sink(settings: "Settings", origins: Origins) -> None:
    """Brokers that are set and empty are a mistake: the records would go to standard output unnoticed."""
    to, brokers = settings.sink.to, settings.kafka.brokers
    name = _name(origins, "sink", "to")
    if fault := sink_fault(to):
        raise ConfigurationError(f"{name} is {_short(to)}, which {fault}")
    if ("kafka", "brokers") in origins and not brokers and to in ("", "kafka"):
        raise ConfigurationError(
            f"{_name(origins, 'kafka', 'brokers')} is empty: name at least one, HOST:PORT, or say where else the"
            " records go (--sink stdout)"
        )
    if to == "kafka" and not brokers and origins["sink", "to"] != COMMAND_LINE:
        raise ConfigurationError(
            f"{name} is 'kafka', which needs brokers: set [kafka] brokers, or give --brokers HOST:PORT,..."
        )


def _check_texts(origins: Origins, table: str, key: str, value: Any) -> None:
    """Raises where a text, or one in a list, has a NUL or, but for a path, is not UTF-8."""
    for text in value if isinstance(value, list | tuple) else (value,):
        if not isinstance(text, str):
            continue
        if "\0" in text:
            raise ConfigurationError(f"{_name(origins, table, key)} has a NUL character: remove it")
        if (table, key) not in PATHS:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ConfigurationError(f"{_name(origins, table, key)} is not UTF-8: write it in UTF-8") from None


def _value(origins: Origins, table: str, key: str, value: Any, kind: Any) -> Any:
    """The value as its type, which is one of those in settings.py."""
    import msgspec
    from msgspec import inspect

    if not isinstance(value, dict):
        _check_texts(origins, table, key, value)
    wanted = inspect.type_info(kind)
    expected = "a text"
    match wanted:
        case inspect.IntType() | inspect.FloatType():
            expected = "a whole number" if isinstance(wanted, inspect.IntType) else "a number"
            expected += f", at least {wanted.ge}" if wanted.ge is not None else ""
            expected += f", above {wanted.gt}" if wanted.gt is not None else ""
            expected += f", at most {wanted.le}" if wanted.le is not None else ""
        case inspect.BoolType():
            expected = "true or false"
            value = _switch(value)
        case inspect.LiteralType():
            expected = f"one of {', '.join(map(str, wanted.values))}"
        case inspect.VarTupleType():
            expected = "a list of texts"
            value = _words(value)
        case inspect.StrType():
            expected += f" of {wanted.min_length or 0} to {wanted.max_length} characters" if wanted.max_length else ""
        case inspect.DictType():
            if not isinstance(value, dict):
                raise _no_table(origins, table, key)
            for name, item in value.items():
                _check_texts(origins, table, f"{key}.{name}", (name, item))
                # librdkafka's numbers have 64 bits at most.
                if not (isinstance(item, str) or (isinstance(item, int | float) and abs(item) < 1 << 64)):
                    raise _bad(origins, table, f"{key}.{name}", None, "a text, a number, true or false")
            return value
    try:
        return msgspec.convert(value, kind, strict=not isinstance(value, str))
    except msgspec.ValidationError:
        raise _bad(origins, table, key, value, expected) from None


def _file(path: str) -> dict[str, Any]:
    """The TOML file."""
    import re
    import tomllib

    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read the settings in {_plain(path)}: {error.strerror}") from None
    path = _plain(path)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigurationError(f"{path} is larger than {MAX_FILE_BYTES} bytes: it is no file of settings")
    try:
        tables = tomllib.loads(data.decode())
        if _is_deep(tables):
            raise RecursionError
        return tables
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}, line {line}: not UTF-8: save the file as UTF-8") from None
    except ValueError as error:  # also a number of thousands of digits
        text = str(error)
        if place := re.search(r" \(at (line \d+, column \d+|end of document)\)$", text):
            raise ConfigurationError(f"{path}, {place[1]}: {text[: place.start()]}") from None
        raise ConfigurationError(f"{path}: {text}") from None
    except RecursionError:
        raise ConfigurationError(f"{path}: nested too deeply") from None


def _is_deep(value: Any) -> bool:
    """Whether tables and lists are nested beyond MAX_DEPTH; a dotted key may have thousands of parts."""
    level = [value]
    for _ in range(MAX_DEPTH):
        within = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for several in within for one in several if isinstance(one, dict | list)]
    return bool(level)


def _words(value: Any) -> Any:
    """A text as a list; anything else as it is."""
    return tuple(word for word in map(str.strip, value.split(",")) if word) if isinstance(value, str) else value


def _switch(value: Any) -> Any:
    """A text that means true or false as that; anything else as it is."""
    return SWITCH.get(value.strip().lower(), value) if isinstance(value, str) else value


def _dotted(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`linger.ms = 5`, which TOML nests, as `"linger.ms" = 5`."""
    flat = {}
    for key, value in table.items():
        flat.update(_dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _name(origins: Origins, table: str, key: str) -> str:
    """Where it was set, and the key."""
    origin = origins.get((table, key), "")
    if origin.startswith(ENVIRONMENT):
        return _plain(origin)
    return _plain(f"{origin}: [{table}] {key}".rstrip() if table else f"{origin}: {key}")


def _bad(origins: Origins, table: str, key: str, value: Any, expected: str) -> ConfigurationError:
    shown = "" if value is None else f" is {_short(value)}:"
    return ConfigurationError(f"{_name(origins, table, key)}{shown} must be {expected}")


def _no_table(origins: Origins, table: str, key: str) -> ConfigurationError:
    """Of `[kafka] librdkafka`: says how one of its settings is set where this was tried."""
    name, origin = _name(origins, table, key), origins[table, key]
    if origin.startswith(ENVIRONMENT):
        return ConfigurationError(f"{name} must go on with a name, as in {PREFIX}KAFKA_LIBRDKAFKA_LINGER_MS")
    instead = ": give --kafka KEY=VALUE" if origin == COMMAND_LINE else ", [kafka.librdkafka]"
    return ConfigurationError(f"{name} must be a table{instead}")


def _plain(text: str) -> str:
    """On one line, and nothing in it that a terminal would act on."""
    return text if text.isprintable() else repr(text)[1:-1]


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _unknown(origins: Origins, table: str, key: str, known: Mapping[str, Mapping[str, Any]]) -> ConfigurationError:
    """Names the nearest: the same key elsewhere, else what is written most alike. Of a variable, variables."""
    from difflib import get_close_matches

    name = _name(origins, table, key)
    if not table and key in known:
        return ConfigurationError(f"{name} must be a table, [{key}]")
    variable = name.startswith(ENVIRONMENT)
    names = [f"{other}.{setting}" for other, settings in known.items() for setting in settings]
    same = [full for full in names if full.partition(".")[2] == key]
    if not key and table not in known and (nearest := get_close_matches(table, known, 1, 0.5)):
        hint = f"did you mean {f'{PREFIX}{nearest[0].upper()}_...' if variable else f'[{nearest[0]}]'}?"
    elif (key or table in known) and (nearest := same or get_close_matches(f"{table}.{key}", names, 1, 0.5)):
        other, _, setting = nearest[0].partition(".")
        full = f"{PREFIX}{other}_{setting}".upper() + ("_..." if setting == "librdkafka" else "")
        hint = f"did you mean {full if variable else f'[{other}] {setting}'}?"
    elif variable:
        begin = f"{PREFIX}{table.upper()}_" if table in known else PREFIX
        rest = [setting.upper() for setting in known[table]] if table in known else [f"{one.upper()}_" for one in known]
        hint = f"after {begin} comes one of {', '.join(rest)}"
    elif table in known:
        hint = f"the settings of [{table}] are {', '.join(known[table])}"
    else:
        hint = f"the tables are {', '.join(known)}"
    return ConfigurationError(f"{name} is not a setting: {hint}")
