"""What Lua 5.1, the one of the stores, made of a text: its functions, their locals, upvalues and globals."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

from attrs import frozen
from lupa import lua51

#: The instructions that read and write a global name; the name is the constant in the upper 18 bits.
_GLOBALS: Final = (5, 7)
_HEADER: Final = 12


@frozen
class Local:
    """A name, and the instructions between which it is there."""

    name: str
    begin: int
    end: int

    def is_there(self, at: int) -> bool:
        """Whether the name is there at an instruction. Nothing need follow the last names of a block."""
        return self.begin <= at < self.end or self.begin == at == self.end


@frozen
class Function:
    """One function of a compiled text.

    Args:
        first_line: where it begins; 0 for the text itself.
        last_line: where it ends.
        locals: all of its locals, parameters among them.
        upvalues: the names from outside that it uses.
        globals: the global names that it uses.
        functions: those that are defined in it.
    """

    first_line: int
    last_line: int
    locals: tuple[Local, ...]
    upvalues: tuple[str, ...]
    globals: frozenset[str]
    functions: tuple[Function, ...]

    def count_locals(self) -> int:
        """How many locals there are at the same time, at the most. Lua allows 200."""
        begins = {one.begin for one in self.locals}
        return max((sum(one.is_there(at) for one in self.locals) for at in begins), default=0)

    def last_names(self) -> frozenset[str]:
        """The locals that are still there at the end: of a text, those that stand outside of each block."""
        end = max((one.end for one in self.locals), default=0)
        return frozenset(one.name for one in self.locals if one.end == end)

    def walk(self) -> Iterator[Function]:
        """This function and all within it."""
        yield self
        for function in self.functions:
            yield from function.walk()


def compile_lua(text: str) -> Function:
    """Compile a text with Lua 5.1.

    Raises:
        LuaError: Lua refuses it.
    """
    runtime: Any = lua51.LuaRuntime(encoding=None)
    dump = runtime.eval("function(text) return string.dump(assert(loadstring(text))) end")
    return _Reader(dump(text.encode())).function()


class _Reader:
    """Reads the format of `string.dump`: numbers of the machine, every text with its length and a 0 at its end."""

    def __init__(self, dumped: bytes) -> None:
        assert dumped[:5] == b"\x1bLua\x51", "not compiled by Lua 5.1"
        assert dumped[6:_HEADER] == bytes((1, 4, 8, 4, 8, 0)), "compiled for another machine"
        self._dumped = dumped
        self._at = _HEADER

    def _take(self, form: str) -> Any:
        found = struct.unpack_from(f"<{form}", self._dumped, self._at)
        self._at += struct.calcsize(f"<{form}")
        return found[0]

    def _text(self) -> str:
        size = self._take("Q")
        text = self._dumped[self._at : self._at + size - 1] if size else b""
        self._at += size
        return text.decode("latin-1")

    def _constant(self) -> str:
        kind = self._take("B")
        if kind == 1:
            self._take("B")
        elif kind == 3:
            self._take("d")
        elif kind == 4:
            return self._text()
        return ""

    def function(self) -> Function:
        self._text()
        first, last = self._take("i"), self._take("i")
        self._take("I")
        code = [self._take("I") for _ in range(self._take("i"))]
        constants = [self._constant() for _ in range(self._take("i"))]
        functions = tuple(self.function() for _ in range(self._take("i")))
        for _ in range(self._take("i")):
            self._take("i")
        names = tuple(Local(self._text(), self._take("i"), self._take("i")) for _ in range(self._take("i")))
        upvalues = tuple(self._text() for _ in range(self._take("i")))
        used = frozenset(constants[word >> 14] for word in code if word & 63 in _GLOBALS)
        return Function(first, last, names, upvalues, used, functions)
