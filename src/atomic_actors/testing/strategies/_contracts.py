"""Strategies for kinds whose classes are not here: from the contract that their service writes.

A contract is JSON (`_contracts`): the wire names of a kind's messages, with the JSON Schemas of what they
carry. The schemas are turned into forms of plain data, so one place knows how values are made.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final, cast
from uuid import UUID

import msgspec
from attrs import define, field
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from atomic_actors.actors._kinds import bind_kinds
from atomic_actors.actors._messages import RawMessage
from atomic_actors.actors._specs import ActorLike
from atomic_actors.base._config import Config
from atomic_actors.base._errors import UsageError
from atomic_actors.codec._classes import TypedDictForm, UnionForm
from atomic_actors.codec._codec import Codec
from atomic_actors.codec._forms import AnyForm, DictForm, Form, ManyForm, TupleForm, choices_form, leaf_form
from atomic_actors.contracts._contracts import contract_of
from atomic_actors.journal._settings import journal_settings
from atomic_actors.testing.strategies._messages import bound_to_anything
from atomic_actors.testing.strategies._values import Overrides, ValueStrategies

__all__ = ("from_contract", "kind_contract")

_TYPES: Final[dict[str, type]] = {
    "null": type(None),
    "boolean": bool,
    "integer": int,
    "number": float,
    "string": str,
}
_FORMATS: Final[dict[str, type]] = {
    "date-time": datetime.datetime,
    "date": datetime.date,
    "time": datetime.time,
    "duration": datetime.timedelta,
    "decimal": Decimal,
    "uuid": UUID,
}


def kind_contract(actor: ActorLike) -> dict[str, Any]:
    """The contract of an actor class or an `EntityKind`, as its service registers it in the store.

    Keep it as JSON in the tests of those who send to the kind: `json.dumps(kind_contract(Account))`.

    Raises:
        UsageError: the actor is declared in a way that cannot work, or a module has several kinds.
    """
    config = Config(url="memory:", actors=[bound_to_anything(actor)])
    codec = Codec()
    kinds = list(bind_kinds(config, codec).values())
    if len(kinds) != 1:
        raise UsageError(f"expected one kind, got {', '.join(kind.name for kind in kinds)}")
    contract: dict[str, Any] = msgspec.json.decode(contract_of(kinds[0], codec, journal_settings(config)))
    return contract


def from_contract(
    contract: str | bytes | Mapping[str, Any],
    *,
    only: Iterable[str] | None = None,
    overrides: Overrides | None = None,
) -> SearchStrategy[RawMessage]:
    """A strategy of the messages of a kind that lives elsewhere, as its contract describes them.

    A contract says less than classes do: the keys of every dict are text, a flag is any whole number, and what
    a constructor refuses is not in it. Say the rest with `overrides=`.

    Args:
        contract: what `kind_contract` gives, also as JSON text.
        only: the wire names to make; all of them where left out.
        overrides: by the name of a message or of a class inside one: a strategy of plain data for the whole,
            or one for each of some fields.

    Raises:
        UsageError: the contract cannot be read, or `only` or `overrides` names what is not there.
    """
    described = _messages_of(contract)
    names = sorted(described) if only is None else list(only)
    for name in names:
        if name not in described:
            raise UsageError(f"only: the contract has no {name}; there are {', '.join(sorted(described))}")
    if not names:
        raise UsageError("the contract has no message, or `only` is empty")
    values = ValueStrategies({} if overrides is None else overrides, plain=True)
    made: list[SearchStrategy[RawMessage]] = []
    for name in names:
        whole = values.overrides.get(name)
        if isinstance(whole, SearchStrategy):
            values.used.add(name)
            payloads = whole
        else:
            payloads = values.values(_form_of(described[name], name), name)
        made.append(st.builds(RawMessage, st.just(name), payloads))
    unused = [key for key in values.unused() if key not in described]
    if unused:
        raise UsageError(f"overrides: nothing that is made here is called {', '.join(map(str, unused))}")
    return st.one_of(made)


def _messages_of(contract: str | bytes | Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name and schema of each message."""
    plain: Any = contract
    if isinstance(contract, str | bytes):
        try:
            plain = msgspec.json.decode(contract)
        except msgspec.DecodeError as error:
            raise UsageError(f"the contract is not JSON: {error}") from error
    try:
        return {str(name): dict(message.get("payload", {})) for name, message in plain["messages"].items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise UsageError("not a contract: it has no `messages` by name") from None


@define(eq=False)
class _Reader:
    """Turns one schema into forms; each definition once, because it may contain itself."""

    definitions: Mapping[str, Any]
    path: str
    known: dict[str, TypedDictForm] = field(factory=dict[str, TypedDictForm])

    def form(self, schema: Any, tag: Mapping[str, Form] | None = None) -> Form:
        """The form of a schema.

        Args:
            schema: of the sorts that `Codec.json_schema` writes.
            tag: a further field of an object, which says which class of a union it is.
        """
        match schema:
            case {"$ref": str(reference)}:
                return self._definition(reference.removeprefix("#/$defs/"), tag)
            case {"allOf": [inner, {"properties": tags}]}:
                described = cast("Mapping[str, Any]", tags)
                return self.form(inner, {name: self.form(each) for name, each in described.items()})
            case {"const": value}:
                return choices_form("", [(value, value)])
            case {"enum": [*values]}:
                return choices_form("", [(value, value) for value in values])
            case {"anyOf": [*members]}:
                return UnionForm(label="union", members=tuple(map(self.form, members)), tags={})
            case {"prefixItems": [*items]}:
                return TupleForm.of(f"list of {len(items)}", tuple(map(self.form, items)), tuple)
            case {"type": "array"}:
                make = set if schema.get("uniqueItems") else list
                return ManyForm.of("list", self.form(schema.get("items", {})), make, (make,))
            case {"type": "object"}:
                return self._object(schema)
            case {"type": str(name)} if name in _TYPES:
                return self._leaf(name, schema)
            case _ if not schema:
                return AnyForm()
            case _:
                raise UsageError(
                    f"{self.path}: this schema is not of a kind that contracts have: {schema!r}; give a strategy of "
                    f"your own: overrides={{{self.path!r}: ...}}"
                )

    def _leaf(self, name: str, schema: Mapping[str, Any]) -> Form:
        # JSON has no bytes, so the schema says base64; what is sent carries them as they are.
        is_bytes = name == "string" and schema.get("contentEncoding") == "base64"
        cls = bytes if is_bytes else _FORMATS.get(schema.get("format", ""), _TYPES[name])
        return cast("Form", leaf_form(cls))

    def _object(self, schema: Mapping[str, Any]) -> Form:
        if "properties" not in schema:
            text = cast("Form", leaf_form(str))
            return DictForm.of("dict", text, self.form(schema.get("additionalProperties", {})), dict)
        form = TypedDictForm(label=str(schema.get("title", self.path)))
        self._fill(form, schema, None)
        return form

    def _definition(self, name: str, tag: Mapping[str, Form] | None) -> Form:
        # The same class stands with a tag in a union and without one elsewhere.
        key = f"{name} tagged" if tag else name
        form = self.known.get(key)
        if form is None:
            schema = self.definitions.get(name)
            if not isinstance(schema, Mapping):
                raise UsageError(f"{self.path}: the contract refers to {name}, which it does not define")
            described = cast("Mapping[str, Any]", schema)
            form = self.known[key] = TypedDictForm(label=str(described.get("title", name)))
            self._fill(form, described, tag)
        return form

    def _fill(self, form: TypedDictForm, schema: Mapping[str, Any], tag: Mapping[str, Form] | None) -> None:
        required = set(schema.get("required", ()))
        fields = {
            name: (self.form(each), name in required) for name, each in schema.get("properties", {}).items()
        }
        form.build({**fields, **{name: (each, True) for name, each in (tag or {}).items()}})


def _form_of(schema: Mapping[str, Any], name: str) -> Form:
    inner = {key: each for key, each in schema.items() if key != "$defs"}
    return _Reader(schema.get("$defs", {}), name).form(inner)
