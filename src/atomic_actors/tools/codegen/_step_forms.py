"""Both sides of the forms of steps: the readers in Lua, the encoders in Python."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from atomic_actors.base._errors import UsageError
from atomic_actors.journal.redis._forms import FORMS, ITEMS, Argument, Form, Items, Kind

__all__ = ("encoders_module", "lua_block", "missing_readers")

#: What a block of Lua is called: `read` and the form, or the list within a form.
_READ: Final = "read "
_LUA_LENGTH: Final = 100
_PYTHON_LENGTH: Final = 110

_FORM: Final = {form.name: form for form in FORMS}
_ITEMS: Final = {items.name: items for items in ITEMS}
_TEXTS: Final = (Kind.TEXT, Kind.BYTES, Kind.TARGET)

#: Each key by what its reader calls it: the expression that names it, and the fields that this needs.
_KEY_SOURCES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "record_key": ("record", ()),
    "log_key": ("log", ()),
    "outcome_key": ("outcome + uid", ("uid",)),
    "new_outcome_key": ("outcome + new_uid", ("new_uid",)),
    "used_key": ("used + key", ("key",)),
    "letters_key": ("keys.letters", ()),
    "index_key": ("keys.index", ()),
    "streams_key": ("keys.streams", ()),
    "inbound_key": ("keys.inbound", ()),
    "outbound_key": ("keys.outbound + target", ("target",)),
}
_ENTITY_NAMES: Final = ("record", "log", "outcome", "used")


# Lua.


def lua_block(name: str) -> str:
    """The text of a block of the Lua library that belongs to the forms.

    Raises:
        UsageError: there is no such block.
    """
    if name == "steps":
        return _lua_steps()
    of = name.removeprefix(_READ)
    if of in _FORM and name != of:
        return _form_reader(_FORM[of])
    if of in _ITEMS and name != of:
        return _items_reader(_ITEMS[of])
    raise UsageError(f"there is no generated block {name!r}")


def missing_readers(names: Iterable[str]) -> list[str]:
    """The blocks that should be in the library but are not among those that are."""
    readers = [f"{_READ}{of.name}" for of in (*FORMS, *ITEMS) if not isinstance(of, Form) or _form_reader(of)]
    return sorted({"steps", *readers}.difference(names))


def _lua_steps() -> str:
    """`local STEPS = {...}`: how many keys and arguments each step has."""
    each: dict[str, list[int]] = {}
    for items in ITEMS:
        each.setdefault(items.form, []).append(len(items.arguments))
    lines = ["local STEPS = {"]
    for form in FORMS:
        keys, arguments = (-1, -1) if form.is_sized else (len(form.keys), len(form.arguments))
        sizes = each.get(form.name, [])
        more = f", first = {len(form.arguments)}, each = {sizes[0]}" if len(sizes) == 1 else ""
        lines.append(f"  {form.name} = {{ keys = {keys}, arguments = {arguments}{more} }},")
    return "\n".join([*lines, "}"])


def _form_reader(form: Form) -> str:
    """The locals of a step's keys and arguments; of one that extends another, of what is new."""
    keys, arguments = 0, 0
    if form.extends:
        base = _FORM[form.extends]
        keys, arguments = len(base.keys), len(base.arguments)
        if form.keys[:keys] != base.keys or form.arguments[:arguments] != base.arguments:
            raise UsageError(f"form {form.name} must begin as {base.name} does")
    lines = [
        *_bind("k", keys, form.keys, "K[{}]"),
        *_bind_arguments("a", arguments, form.arguments),
    ]
    if form.is_sized and not form.extends:
        ends = f"{_place('a', len(form.arguments))}, {_place('k', len(form.keys))}"
        lines.append(f"local at, key_at = {ends}")
    return "\n".join(lines)


def _items_reader(items: Items) -> str:
    """The locals of one member of a list, and a step behind it."""
    lines = [
        *_bind("key_at", 0, items.keys, "K[{}]"),
        *_bind_arguments("at", 0, items.arguments),
    ]
    if items.arguments:
        lines.append(f"at = at + {len(items.arguments)}")
    if items.keys:
        lines.append(f"key_at = key_at + {len(items.keys)}")
    return "\n".join(lines)


def _place(start: str, offset: int) -> str:
    return f"{start} + {offset}" if offset else start


def _bind(start: str, first: int, names: tuple[str, ...], form: str) -> list[str]:
    """One `local` of the names from `first` on, or several where the line would be too long."""
    lines: list[str] = []
    left: list[str] = []
    right: list[str] = []
    for offset, name in enumerate(names[first:], first):
        value = form.format(_place(start, offset))
        if left and len(f"local {', '.join([*left, name])} = {', '.join([*right, value])}") > _LUA_LENGTH:
            lines.append(f"local {', '.join(left)} = {', '.join(right)}")
            left, right = [], []
        left.append(name)
        right.append(value)
    if left:
        lines.append(f"local {', '.join(left)} = {', '.join(right)}")
    return lines


def _bind_arguments(start: str, first: int, arguments: tuple[Argument, ...]) -> list[str]:
    """Texts that follow each other share a line; what has to be converted has a line of its own."""
    lines: list[str] = []
    position = first
    while position < len(arguments):
        argument = arguments[position]
        place = f"A[{_place(start, position)}]"
        if argument.kind is Kind.NUMBER:
            lines.append(f'local {argument.name} = integer({place}, "{argument.name}")')
        elif argument.kind is Kind.FLAG:
            lines.append(f'local {argument.name} = {place} == "1"')
        elif argument.kind is Kind.POLICY:
            lines.append(f"local {argument.name} = read_policy(texts[tonumber({place})])")
        else:
            stop = position
            while stop < len(arguments) and arguments[stop].kind in _TEXTS:
                stop += 1
            names = tuple(one.name for one in arguments[:stop])
            lines += _bind(start, position, names, "A[{}]")
            position = stop
            continue
        position += 1
    return lines


# Python.


_MODULE_HEAD: Final = '''"""The encoders of the steps of a fixed size: each adds a step's keys and arguments to a call.

Generated by `python -m atomic_actors.tools.codegen` from `_forms.py`; change that instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from atomic_actors.journal._steps import (
{records}
)
from atomic_actors.journal.redis._calls import (
    FLAGS,
    Call,
    KeyNames,
    PartitionKeys,
    number_bytes,
    policy_bytes,
    target_bytes,
)

__all__ = ("ENCODERS", "Encoder")

#: Names of keys, call, step, names of the partition's keys, position of the partition.
Encoder = Callable[[KeyNames, Call, Any, PartitionKeys, bytes], None]
'''


def encoders_module() -> str:
    """The text of `_encoders.py`: a function for each step of a fixed size, and their table."""
    by_records: dict[tuple[type, ...], list[Form]] = {}
    for form in FORMS:
        if form.records and not form.is_sized:
            by_records.setdefault(form.records, []).append(form)
    rows = {
        record.__name__: f"    {record.__name__}: _{forms[-1].name},"
        for records, forms in by_records.items()
        for record in records
    }
    head = _MODULE_HEAD.format(records="\n".join(f"    {name}," for name in sorted(rows)))
    functions = [_encoder(forms) for forms in by_records.values()]
    table = "\n".join(["ENCODERS: Final[dict[type[Any], Encoder]] = {", *rows.values(), "}"])
    return "\n\n\n".join([head.rstrip("\n"), *functions, table]) + "\n"


def _encoder(forms: list[Form]) -> str:
    plain = forms[-1]
    if plain.when or not all(form.when for form in forms[:-1]):
        raise UsageError(f"of the forms of {plain.records[0].__name__}, the last one alone has no condition")
    step = " | ".join(record.__name__ for record in plain.records)
    parameters = f"names: KeyNames, call: Call, step: {step}, keys: PartitionKeys, index: bytes"
    lines = [f"def _{plain.name}({parameters}) -> None:"]
    if len(lines[0]) > _PYTHON_LENGTH:
        lines = [f"def _{plain.name}(", f"    {parameters}", ") -> None:"]
    lines += _entity_names(forms)
    needed = [_key_fields(form) for form in forms]
    common = [field for field in needed[0] if all(field in fields for fields in needed)]
    lines += _field_names(plain, common)
    for form in forms[:-1]:
        own = _additions(form, common, _PYTHON_LENGTH - 4)
        lines += [f"    if {form.when}:", *(f"    {line}" for line in own), "        return"]
    return "\n".join([*lines, *_additions(plain, common, _PYTHON_LENGTH)])


def _entity_names(forms: list[Form]) -> list[str]:
    if not any(argument.name == "entity" for form in forms for argument in form.arguments):
        return []
    sources = [_KEY_SOURCES[key][0].partition(" ")[0] for form in forms for key in form.keys]
    names = ", ".join(name if name in sources else "_" for name in _ENTITY_NAMES)
    return [f"    name, {names} = keys.entities.get(step.entity) or names.entity(keys, step.entity)"]


def _key_fields(form: Form) -> list[str]:
    """The fields that stand in names of keys."""
    return [field for key in form.keys for field in _KEY_SOURCES[key][1]]


def _field_names(form: Form, fields: Iterable[str]) -> list[str]:
    arguments = {argument.name: argument for argument in form.arguments}
    return [f"    {field} = {_source(arguments[field])}" for field in fields]


def _additions(form: Form, common: list[str], length: int) -> list[str]:
    """The lines that add a form's keys and arguments; the `common` fields are there already."""
    fields = _key_fields(form)
    lines = _field_names(form, [field for field in fields if field not in common])
    keys = [_KEY_SOURCES[key][0] for key in form.keys]
    if len(keys) == 1:
        lines.append(f"    call.keys.append({keys[0]})")
    elif keys:
        lines.append(f"    call.keys += ({', '.join(keys)})")
    values = [f'b"{form.name}"', "index"]
    values += [argument.name if argument.name in fields else _source(argument) for argument in form.arguments]
    line = f"    call.arguments += ({', '.join(values)})"
    if len(line) <= length:
        return [*lines, line]
    return [*lines, "    call.arguments += (", *(f"        {value}," for value in values), "    )"]


def _source(argument: Argument) -> str:
    """The expression that writes an argument."""
    if argument.name == "entity":
        return "name"
    value = argument.source or f"step.{argument.name}"
    texts = {
        Kind.TEXT: f"{value}.encode()",
        Kind.BYTES: value,
        Kind.NUMBER: f"number_bytes({value})",
        Kind.FLAG: f"FLAGS[{value}]",
        Kind.TARGET: f"target_bytes({value})",
        Kind.POLICY: f"policy_bytes(call, {value})",
    }
    return texts[argument.kind]
