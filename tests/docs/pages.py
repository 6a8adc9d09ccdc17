"""Takes the examples out of the pages, and runs one page's Python as a program of its own.

    python -m tests.docs.pages docs/handlers.md trio memory:

The blocks of a page run in order in one module, as a reader would type them. A block may use `await` at
its top level. Only two things differ from what the reader sees: `Config(...)` gets the store that the
command line names, and `anyio.run(...)` its backend.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, ModuleType

import anyio
from attrs import frozen

ROOT = Path(__file__).parent.parent.parent
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: `print(...)  # 100: why` promises that a line `100` is printed.
PROMISE = re.compile(r"^\s*print\(.*\)\s+# ([^:\n]+)", re.MULTILINE)


@frozen
class Block:
    """One fenced block of a page."""

    page: Path
    language: str
    text: str
    #: Of the block's first line, counted from 1.
    line: int


def pages() -> list[Path]:
    """Every page that is written for users."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks_of(page: Path, language: str) -> list[Block]:
    """The fenced blocks of one language, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, language, found[2], text.count("\n", 0, found.start()) + 2)
        for found in FENCE.finditer(text)
        if found[1] == language
    ]


def promised_output(blocks: list[Block]) -> list[str]:
    """What the blocks say that they print."""
    return [promise.strip() for block in blocks for promise in PROMISE.findall(block.text)]


class _Arrange(ast.NodeTransformer):
    """Gives `Config(...)` a store and `anyio.run(...)` a backend, where they do not name one."""

    def __init__(self, backend: str, url: str) -> None:
        self.backend = backend
        self.url = url

    def visit_If(self, node: ast.If) -> ast.AST:
        """Run what a file runs when it is the program."""
        self.generic_visit(node)
        if ast.unparse(node.test) == "__name__ == '__main__'":
            node.test = ast.Constant(True)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        said = {keyword.arg for keyword in node.keywords}
        match node.func:
            case ast.Name(id="Config") | ast.Attribute(value=ast.Name(id="Config"), attr="from_env"):
                name, value = "url", self.url
            case ast.Attribute(value=ast.Name(id="anyio"), attr="run"):
                name, value = "backend", self.backend
            case _:
                return node
        if name not in said:
            node.keywords.append(ast.keyword(arg=name, value=ast.Constant(value)))
        return node


def compiled(block: Block, backend: str, url: str) -> CodeType:
    tree = ast.parse(block.text, filename=str(block.page))
    tree = ast.fix_missing_locations(_Arrange(backend, url).visit(tree))
    ast.increment_lineno(tree, block.line - 1)
    code = compile(tree, str(block.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    assert isinstance(code, CodeType)
    return code


def run_page(page: Path, backend: str, url: str) -> None:
    """Run every Python block of a page, in order, in one module."""
    module = ModuleType(f"page_{page.stem.replace('-', '_').lower()}")
    sys.modules[module.__name__] = module
    for block in blocks_of(page, "python"):
        code = compiled(block, backend, url)
        if code.co_flags & inspect.CO_COROUTINE:

            async def run_block(code: CodeType = code) -> None:
                with anyio.fail_after(20):
                    await eval(code, vars(module))

            anyio.run(run_block, backend=backend)
        else:
            exec(code, vars(module))


def commands() -> Iterator[tuple[Block, str]]:
    """Every line of every block of shell commands, one command of a chain at a time."""
    for page in [*pages(), ROOT / "CONTRIBUTING.md"]:
        for block in blocks_of(page, "console"):
            for line in block.text.splitlines():
                code = line.partition(" #")[0].strip()
                for command in filter(None, map(str.strip, code.split("&&"))):
                    yield block, command


if __name__ == "__main__":
    run_page(ROOT / sys.argv[1], sys.argv[2], sys.argv[3])
