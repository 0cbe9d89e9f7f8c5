"""Settings from defaults < `--config` TOML < environment < flags, in two steps.

1. `layers`, `guard_part` and `dies_with_parent` need the standard library only: the guard is held before anything heavy
   is imported.
2. `convert` knows the schema (settings.py, msgspec): every key and value is checked there.

The environment: `HTTP_CAPTURE_<TABLE>_<KEY>`; a list is separated by commas. `HTTP_CAPTURE_KAFKA_LIBRDKAFKA_LINGER_MS`
is `"linger.ms"` of `[kafka.librdkafka]`: no name there has an underscore. `HTTP_CAPTURE_CONFIG` is `--config`.
A text stands for the type that is wanted: yes, no, on, off, true, false, 1, 0 for a switch.

Every error is a ConfigurationError of one line that names the key and where it was set.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..capture.errors import ConfigurationError

if TYPE_CHECKING:
    from .settings import Settings

PREFIX = "HTTP_CAPTURE_"
ENVIRONMENT = "the environment variable "
NOT_SETTINGS = frozenset({"HTTP_CAPTURE_CONFIG", "HTTP_CAPTURE_EXTENSIONS", "HTTP_CAPTURE_CHECKED"})
MAX_FILE_BYTES = 1 << 20
MAX_INT = (1 << 63) - 1  # what the compiled modules can hold
SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

Values = dict[str, dict[str, Any]]  # table -> key -> value as it was written
Origins = dict[tuple[str, str], str]  # (table, key) -> where the value was set, in words
Flags = Mapping[str, Mapping[str, Any]]  # as Values; only what was given


def layers(config_path: str, environ: Mapping[str, str], flags: Flags) -> tuple[Values, Origins]:
    """Lays the layers over each other, the keys and values unchecked.

    `config_path` empty: HTTP_CAPTURE_CONFIG, and no file where that is not set either. Of `[kafka.librdkafka]` the
    layers are joined key by key; any other value is replaced as a whole. Defaults are not in what is returned.
    """
    values: Values = {}
    origins: Origins = {}

    def lay(table: str, key: str, value: Any, origin: str) -> None:
        keys = values.setdefault(table, {})
        if (table, key) == ("kafka", "librdkafka") and isinstance(value, dict):
            value = _dotted(value)
            for name in value:
                origins[table, f"{key}.{name}"] = origin
            if isinstance(keys.get(key), dict):
                value = {**keys[key], **value}
        keys[key] = value
        origins[table, key] = origin

    path = config_path or environ.get("HTTP_CAPTURE_CONFIG", "")
    if path:
        for table, keys in _file(path).items():
            if isinstance(keys, dict):
                values.setdefault(table, {})
                origins[table, ""] = path
                for key, value in keys.items():
                    lay(table, key, value, path)
            else:
                lay("", table, keys, path)
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in NOT_SETTINGS:
            table, _, key = name.removeprefix(PREFIX).lower().partition("_")
            value = environ[name]
            if table == "kafka" and key.startswith("librdkafka_"):
                key, value = "librdkafka", {key.removeprefix("librdkafka_").replace("_", "."): value}
            lay(table, key, value, ENVIRONMENT + name)
    for table, given in flags.items():
        for key, value in given.items():
            if value is not None:
                lay(table, key, value, "the command line")
    return values, origins


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
    return pidfile, tuple(ifaces), lock


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
    return Settings(**{table.name: table.type(**tables.get(table.name, {})) for table in fields(Settings)})


def _value(origins: Origins, table: str, key: str, value: Any, kind: Any) -> Any:
    """The value as its type, which is one of those in settings.py. Never shows a librdkafka value: it may be secret."""
    import msgspec
    from msgspec import inspect

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
                raise _bad(origins, table, key, value, "a table")
            for name, item in value.items():
                if not isinstance(item, str | int | float):
                    raise _bad(origins, table, f"{key}.{name}", None, "a text, a number, true or false")
            return value
    try:
        converted = msgspec.convert(value, kind, strict=not isinstance(value, str))
    except msgspec.ValidationError:
        raise _bad(origins, table, key, value, expected) from None
    if isinstance(converted, int | float) and converted > MAX_INT:  # also infinite
        raise _bad(origins, table, key, value, expected)
    return converted


def _file(path: str) -> dict[str, Any]:
    """The TOML file."""
    import re
    import tomllib

    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read the settings in {path}: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigurationError(f"{path} is larger than {MAX_FILE_BYTES} bytes: it is no file of settings")
    try:
        return tomllib.loads(data.decode())
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
        return origin
    return f"{origin}: [{table}] {key}".rstrip() if table else f"{origin}: {key}"


def _bad(origins: Origins, table: str, key: str, value: Any, expected: str) -> ConfigurationError:
    shown = "" if value is None else f" is {_short(value)}:"
    return ConfigurationError(f"{_name(origins, table, key)}{shown} must be {expected}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unknown(origins: Origins, table: str, key: str, known: Mapping[str, Mapping[str, Any]]) -> ConfigurationError:
    """Names the nearest: the same key elsewhere, else what is written most alike."""
    from difflib import get_close_matches

    name = _name(origins, table, key)
    if not table and key in known:
        return ConfigurationError(f"{name} must be a table, [{key}]")
    names = [f"{other}.{setting}" for other, settings in known.items() for setting in settings]
    same = [full for full in names if full.partition(".")[2] == key]
    if not key and table not in known:
        nearest = get_close_matches(table, known, 1, 0.5)
        hint = f"did you mean [{nearest[0]}]?" if nearest else f"the tables are {', '.join(known)}"
    elif nearest := same or get_close_matches(f"{table}.{key}", names, 1, 0.5):
        other, _, setting = nearest[0].partition(".")
        environment = f"{PREFIX}{other}_{setting}".upper()
        hint = f"did you mean {environment if name.startswith(ENVIRONMENT) else f'[{other}] {setting}'}?"
    else:
        hint = (
            f"the settings of [{table}] are {', '.join(known[table])}"
            if table in known
            else (f"the tables are {', '.join(known)}")
        )
    return ConfigurationError(f"{name} is not a setting: {hint}")
