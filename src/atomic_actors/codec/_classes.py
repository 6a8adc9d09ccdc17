"""The forms of what has named fields: classes, typed dicts, and unions of them.

cattrs generates the functions of a class; the checks around them (is it this very class, is it a dict)
are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, cast

import attrs
from attrs import define, frozen
from cattrs import Converter, gen

from atomic_actors.base._errors import UsageError
from atomic_actors.codec._forms import Form, Mismatch, Read, Write

__all__ = ("TAG", "ClassField", "ClassForm", "TypedDictForm", "UnionForm", "union_form")

#: The field that says which class of a union it is.
TAG: Final = "_type"
_INT: Final = frozenset({int})
_FLOAT: Final = frozenset({float, int})


class _Generator(Converter):
    """A cattrs converter whose hooks are our forms: the `type` of a field is the form itself."""

    def get_structure_hook(self, type: Any, cache_result: bool = True) -> Read:
        """The form's `read`."""
        return cast("Form", type).late_read()

    def get_unstructure_hook(self, type: Any, cache_result: bool = True) -> Write:
        """The form's `write`."""
        return cast("Form", type).late_write()


_GENERATOR: Final = _Generator(detailed_validation=False)


@frozen(kw_only=True)
class ClassField:
    """One field of a class, in the words of attrs, for attrs classes and dataclasses alike.

    Args:
        name: the attribute, and its name in the plain data.
        alias: the argument of the constructor.
        type: the form of its values.
        default: `attrs.NOTHING` where the field is required.
        init: whether the constructor takes it.
        kw_only: whether the constructor takes it only by name.
    """

    name: str
    alias: str
    type: Form
    default: Any
    init: bool
    kw_only: bool
    converter: None = None


@define(eq=False, kw_only=True)
class ClassForm(Form):
    """An attrs class or a dataclass."""

    name: str
    fields: tuple[ClassField, ...] = ()

    def build(self, cls: type, fields: tuple[ClassField, ...]) -> None:
        """Generate the functions, once the forms of the fields are known."""
        self.fields = fields
        # The generators take anything that has the attributes of an `attrs.Attribute`.
        make_to_dict: Callable[..., Write] = getattr(gen, "make_dict_unstructure_fn_from_attrs")  # noqa: B009
        make_from_dict: Callable[..., Read] = getattr(gen, "make_dict_structure_fn_from_attrs")  # noqa: B009
        options: dict[str, Any] = {"_cattrs_include_init_false": True, "_cattrs_use_alias": False}
        to_dict = make_to_dict(list(fields), cls, _GENERATOR, **options)
        # The forms know the type variables already; cattrs only wants a name for each.
        variables = {parameter.__name__: object for parameter in getattr(cls, "__parameters__", ())}
        options["_cattrs_detailed_validation"] = False
        from_dict = make_from_dict(list(fields), cls, _GENERATOR, variables, **options)

        def write(value: Any) -> Any:
            if value.__class__ is cls:
                return to_dict(value)
            # A subclass would come back as this class.
            raise Mismatch(f"{self.name} itself, no subclass" if isinstance(value, cls) else "")

        def read(value: Any, _: Any = None) -> Any:
            if value.__class__ is dict:
                return from_dict(value)
            raise Mismatch

        self.write, self.read = write, read

    def parts(self, value: Any, reading: bool) -> Iterator[tuple[str, Form | str, Any]]:
        """The fields."""
        if reading and value.__class__ is dict:
            for field in self.fields:
                if field.name in value:
                    yield f".{field.name}", field.type, value[field.name]
                elif field.default is attrs.NOTHING:
                    yield f".{field.name}", "required field is missing", None
        elif not reading and value.__class__ in self.classes:
            for field in self.fields:
                if hasattr(value, field.name):
                    yield f".{field.name}", field.type, getattr(value, field.name)
                else:
                    yield f".{field.name}", "was never set", None

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        """A reference; the object goes into `definitions`."""
        cls = self.classes[0]
        key = self.name
        if definitions.get(key, {}).get("x-class", cls) is not cls:
            key = f"{cls.__module__}.{self.name}"
        if key not in definitions:
            definition: dict[str, Any] = {"x-class": cls, "title": self.name, "type": "object"}
            definitions[key] = definition
            definition["properties"] = {field.name: field.type.schema(definitions) for field in self.fields}
            definition["required"] = [field.name for field in self.fields if field.default is attrs.NOTHING]
        return {"$ref": f"#/$defs/{key}"}


@define(eq=False, kw_only=True)
class TypedDictForm(Form):
    """A TypedDict. Extra keys are an error when written and ignored when read."""

    fields: dict[str, tuple[Form, bool]] = attrs.field(factory=dict[str, tuple[Form, bool]])

    def build(self, fields: dict[str, tuple[Form, bool]]) -> None:
        """Make the functions; each field has its form and whether it is required."""
        self.fields = fields
        writes = {name: form.late_write() for name, (form, _) in fields.items()}
        reads = {name: form.late_read() for name, (form, _) in fields.items()}
        required = frozenset(name for name, (_, needed) in fields.items() if needed)

        def write(value: Any) -> Any:
            if value.__class__ is not dict or not required <= value.keys() <= fields.keys():
                raise Mismatch
            return {name: writes[name](inner) for name, inner in value.items()}

        def read(value: Any, _: Any = None) -> Any:
            if value.__class__ is not dict or not required <= value.keys():
                raise Mismatch
            return {name: reads[name](inner) for name, inner in value.items() if name in reads}

        self.write, self.read = write, read

    def parts(self, value: Any, reading: bool) -> Iterator[tuple[str, Form | str, Any]]:
        """The fields."""
        if value.__class__ is not dict:
            return
        for name, (form, required) in self.fields.items():
            if name in value:
                yield f"[{name!r}]", form, value[name]
            elif required:
                yield f"[{name!r}]", "required key is missing", None
        if not reading:
            yield from (
                (f"[{key!r}]", f"{self.label} has no such key", None)
                for key in value
                if key not in self.fields
            )

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        """An object."""
        return {
            "title": self.label,
            "type": "object",
            "properties": {name: form.schema(definitions) for name, (form, _) in self.fields.items()},
            "required": [name for name, (_, required) in self.fields.items() if required],
        }


# Unions.


@define(eq=False, kw_only=True)
class UnionForm(Form):
    """One of several types, told apart by the class of the plain data, and classes by the field `_type`."""

    members: tuple[Form, ...]
    tags: dict[str, ClassForm]

    def choose(self, value: Any, reading: bool) -> Form | None:
        """The member that a value or plain data belongs to; None if it belongs to none."""
        cls = value.__class__
        if reading:
            if cls is dict and self.tags:
                tag = value.get(TAG)
                return self.tags.get(tag) if isinstance(tag, str) else None
            candidates = [member for member in self.members if cls in member.wire]
            # Both an int and a float read an int; the int has the better claim.
            return min(candidates, key=lambda member: len(member.wire), default=None)
        for member in self.members:
            if cls in member.classes and cls is member.classes[0]:
                return member
        return next((member for member in self.members if isinstance(value, member.classes)), None)

    def parts(self, value: Any, reading: bool) -> Iterator[tuple[str, Form | str, Any]]:
        """The member that was meant."""
        member = self.choose(value, reading)
        if member is not None:
            yield "", member, value
        elif reading and self.tags and value.__class__ is dict:
            expected = " or ".join(map(repr, self.tags))
            yield f"[{TAG!r}]", f"expected {expected}, got {value.get(TAG)!r}", None

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        """Any of the members; tagged classes with their tag."""
        tagged = {id(form): name for name, form in self.tags.items()}
        choices: list[dict[str, Any]] = []
        for member in self.members:
            schema = member.schema(definitions)
            if id(member) in tagged:
                tag = {"properties": {TAG: {"const": tagged[id(member)]}}, "required": [TAG]}
                schema = {"allOf": [schema, tag]}
            choices.append(schema)
        return {"anyOf": choices}


def union_form(members: tuple[Form, ...], path: str) -> Form:
    """The form of a union.

    Raises:
        UsageError: two members cannot be told apart when they are read.
    """
    label = " or ".join(member.label for member in members)
    tags = _tags(members, path)
    for index, first in enumerate(members):
        for second in members[index + 1 :]:
            if first.wire & second.wire and not _can_be_told_apart(first, second, tags):
                raise UsageError(
                    f"{path}: {first.label} and {second.label} look the same when stored, so a value of this union "
                    f"could not be read back; give each a class of its own"
                )
    form = UnionForm(
        label=label,
        read_label=" or ".join(member.read_label or member.label for member in members),
        classes=tuple(cls for member in members for cls in member.classes),
        wire=frozenset[type]().union(*(member.wire for member in members)),
        key=all(member.key for member in members),
        members=members,
        tags=tags,
    )
    given = [member for member in members if member.classes != (type(None),)]
    if len(given) == 1 and len(members) == 2:
        form.write, form.read = _optional(given[0])
    else:
        form.write, form.read = _union_write(form), _union_read(form)
    return form


def _optional(given: Form) -> tuple[Write, Read]:
    write_given, read_given = given.late_write(), given.late_read()

    def write(value: Any) -> Any:
        return None if value is None else write_given(value)

    def read(value: Any, _: Any = None) -> Any:
        return None if value is None else read_given(value)

    return write, read


def _can_be_told_apart(first: Form, second: Form, tags: dict[str, ClassForm]) -> bool:
    if {first.wire, second.wire} == {_INT, _FLOAT}:
        return True  # a float is always written as one, so what comes back as an int was none
    return any(first is form for form in tags.values()) and any(second is form for form in tags.values())


def _tags(members: tuple[Form, ...], path: str) -> dict[str, ClassForm]:
    classes = [member for member in members if isinstance(member, ClassForm)]
    if len(classes) < 2:
        return {}
    tags = {form.name: form for form in classes}
    if len(tags) < len(classes):
        raise UsageError(f"{path}: two classes of this union have the same name; rename one")
    for form in classes:
        if any(field.name == TAG for field in form.fields):
            raise UsageError(
                f"{path}: {form.name}.{TAG} has the name that tells the classes of a union apart; rename it"
            )
    return tags


def _union_write(form: UnionForm) -> Write:
    choose = form.choose
    names = {id(member): name for name, member in form.tags.items()}
    exact: dict[type, tuple[Write, str | None]] = {}
    for member in form.members:
        for cls in member.classes:
            exact.setdefault(cls, (member.late_write(), names.get(id(member))))
    for member in form.members:
        if member.classes:  # its own class wins over another member that takes it too, such as int for float
            exact[member.classes[0]] = (member.late_write(), names.get(id(member)))

    def write(value: Any) -> Any:
        found = exact.get(value.__class__)
        if found is None:
            member = choose(value, False)
            if member is None:
                raise Mismatch
            return member.write(value)
        write_member, tag = found
        return write_member(value) if tag is None else {TAG: tag, **write_member(value)}

    return write


def _union_read(form: UnionForm) -> Read:
    choose: Callable[[Any, bool], Form | None] = form.choose
    if form.tags:

        def read_tagged(value: Any, _: Any = None) -> Any:
            member = choose(value, True)
            if member is None:
                raise Mismatch
            return member.read(value)

        return read_tagged
    by_class: dict[type, Read] = {}
    for member in sorted(form.members, key=lambda member: -len(member.wire)):
        by_class.update(dict.fromkeys(member.wire, member.late_read()))

    def read(value: Any, _: Any = None) -> Any:
        read_member = by_class.get(value.__class__)
        if read_member is None:
            raise Mismatch
        return read_member(value)

    return read
