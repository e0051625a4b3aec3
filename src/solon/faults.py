"""What is wrong with a file's values, in the words of who wrote the file: pydantic's faults, translated."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from solon.errors import did_you_mean

Location = tuple[str | int, ...]

_SHOWN = 40  # Characters of a wrong value that a message repeats
_SECRET = frozenset({"endpoints", "api_key_env"})  # Where a password or a key may stand by mistake
_WANTED: Mapping[str, str] = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_parsing", "float_type", "finite_number"), "a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    "string_type": "text, in quotes",
    "string_pattern_mismatch": "lower-case letters, digits, - and _, first a letter or digit",
    **dict.fromkeys(("tuple_type", "list_type"), "a list, such as [a, b]"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "its keys, a line for each"),
}
_BOUNDS: Mapping[str, str] = {
    "too_short": "at least {min_length} of them",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
}


def explained(faults: Sequence[Any], model: type[BaseModel], data: Any) -> list[tuple[Location, str, str]]:
    """Where, what is wrong and the fix, once for each place at which pydantic found faults.

    Where a value may be of several kinds, pydantic has a fault for each; a list from which it dropped a
    wrong item has one more, of its length, that says nothing of its own.
    """
    by_place = defaultdict[Location, list[Any]](list)
    lengths = [tuple(fault["loc"]) for fault in faults if fault["type"] == "too_short"]
    echoes = {at for at in lengths if any(_below(tuple(fault["loc"]), at) for fault in faults)}
    for fault in faults:
        if fault["type"] == "too_short" and tuple(fault["loc"]) in echoes:
            continue
        by_place[_written(place(fault["loc"], model), data)].append(fault)
    return [(where, *_explain(where, found, model)) for where, found in by_place.items()]


def _below(place: Location, other: Location) -> bool:
    return len(place) > len(other) and place[: len(other)] == other


def _written(where: Location, data: Any) -> Location:
    """The place as it stands in the data: one value may stand for a list of one."""
    for at, part in enumerate(where):
        if isinstance(part, int) and not isinstance(data, list):
            return where[:at]
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return where
    return where


def place(loc: Sequence[str | int], model: Any) -> Location:
    """pydantic's place of a fault without the names of the kinds that it tried there."""
    found: list[str | int] = []
    for at, part in enumerate(loc):
        fields = getattr(model, "model_fields", {})
        if isinstance(part, str) and part in fields:
            model = _inner_model(fields[part].annotation)
        elif isinstance(part, str) and not (fields and at == len(loc) - 1):
            continue
        found.append(part)
    return tuple(found)


def _explain(where: Location, faults: Sequence[Any], model: type[BaseModel]) -> tuple[str, str]:
    name = ".".join(str(part) for part in where)
    kinds = {fault["type"] for fault in faults}
    if "extra_forbidden" in kinds:
        return f"unknown key `{name}`", _suggest(model, where)
    if "missing" in kinds:
        if isinstance(where[-1], int):
            return f"`{'.'.join(map(str, where[:-1]))}` has only {where[-1]} items", "Write one more."
        return f"`{name}` is missing", f"Add `{where[-1]}: …` here."
    wanted = [text for fault in faults if (text := _wanted(fault))]
    if wanted and len(wanted) == len(faults):
        shown = "of a wrong kind" if _SECRET & {*where} else _shown(faults[0]["input"])
        return f"`{name}` is {shown}", _fix(faults, wanted)
    message = next(str(fault["msg"]) for fault in faults if _wanted(fault) is None)
    message = message.removeprefix("Value error, ")
    what = message[0].lower() + message[1:]
    own_words = any(fault["type"] == "value_error" for fault in faults)  # They say what to do
    return (f"`{name}`: {what}" if name else what), "" if own_words else "Change it."


def _wanted(fault: Any) -> str | None:
    """What should stand there instead; None if the fault's own message says it best."""
    if fault["type"] == "literal_error":
        return str(fault["ctx"]["expected"]).replace("'", "`")
    if fault["type"] in _BOUNDS:
        return _BOUNDS[fault["type"]].format(**fault["ctx"])
    return _WANTED.get(fault["type"])


def _fix(faults: Sequence[Any], wanted: Sequence[str]) -> str:
    written = f"Write {' or '.join(dict.fromkeys(wanted))}."
    named = [str(fault["ctx"]["expected"]) for fault in faults if fault["type"] == "literal_error"]
    known = [part for text in named for part in text.split("'")[1::2]]
    close = did_you_mean(str(faults[0]["input"]), known, "")
    return f"{close} {written}" if close else written


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "empty", True: "`true`", False: "`false`"}[value]
    if isinstance(value, dict):
        return "a group of keys"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return f"`{value}`" if len(str(value)) <= _SHOWN else f"`{str(value)[:_SHOWN]}…`"


def _suggest(model: type[BaseModel], location: Location) -> str:
    """The known key that is spelled most like the unknown one, at the same depth of the model."""
    known = _keys_at(model, location[:-1])
    otherwise = f"Known keys here: {', '.join(sorted(known))}." if known else "Remove it."
    return did_you_mean(str(location[-1]), list(known), otherwise)


def _keys_at(model: Any, path: Location) -> list[str]:
    for part in path:
        if isinstance(part, str):
            field = getattr(model, "model_fields", {}).get(part)
            if field is None:
                return []
            model = _inner_model(field.annotation)
    return list(getattr(model, "model_fields", {}))


def _inner_model(annotation: Any) -> Any:
    """The pydantic model inside `X`, `X | None`, `list[X]` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    arguments = getattr(annotation, "__args__", ())
    found = (_inner_model(argument) for argument in arguments)
    return next((inner for inner in found if inner is not None), None)
