"""Holds the rules of the house: layers, purity, sizes, names, and what may stand in the repository.

A rule is a function from a file to sentences about what is wrong, and a row of `RULES`: where it looks, and a text
that breaks it. Every row is run twice: over the repository, and over its own bad text, to show that it can fail.
"""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

FUNCTION_LINE_COUNT_MAX = 40
PARAMETER_COUNT_MAX = 5
FILE_LINE_COUNT_MAX = 600
LINE_LENGTH_MAX = 120

STANDARD = sys.stdlib_module_names
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
GROUND_NAMES = re.findall(r"\w+", CONTRACTS[0]["layers"][-1])
GROUND = {f"cowtree.{name}" for name in GROUND_NAMES}
PURE = (
    *("__future__", "abc", "bisect", "collections", "copy", "dataclasses", "enum", "fractions", "functools", "heapq"),
    *("itertools", "math", "operator", "re", "string", "struct", "types", "typing", "zlib", "numpy", "zstandard"),
    *GROUND,
)

# Which names a file may import: the first pattern that fits its path counts. A name stands for all below it.
IMPORTS = (
    (r"src/cowtree/qcow2/", {*PURE, "cowtree.qcow2"}),
    (r"src/cowtree/domain/", {*PURE, "lxml", "cowtree.domain"}),
    (r"src/cowtree/luks/", {*PURE, "hashlib", "hmac", "cryptography", "cowtree.luks"}),
    (r"src/cowtree/plan/", {*PURE, "cowtree.qcow2", "cowtree.luks", "cowtree.plan"}),
    (rf"src/cowtree/({'|'.join(GROUND_NAMES)})\.py", {*STANDARD, "numpy", *GROUND}),
    (r"src/cowtree/storage/foreign_disks\.py", {*STANDARD, "dissect", "cowtree"}),
    (r"src/cowtree/cli/", {*STANDARD, "numpy", "zstandard", "cryptography", "cowtree", "rich"}),
    (r"src/", {*STANDARD, "numpy", "zstandard", "cowtree"}),
)

# What to write in place of an import that a pure folder may not have.
VALUES = "take bytes or arrays and return values; storage/ reads and writes"
PLAN = "return it in the plan; execute/ runs it"
INSTEAD = {
    **dict.fromkeys(("os", "io", "pathlib", "mmap", "tempfile", "shutil", "glob", "fcntl", "cowtree.storage"), VALUES),
    **dict.fromkeys(("subprocess", "threading", "multiprocessing", "asyncio", "concurrent", "signal"), PLAN),
    **dict.fromkeys(("socket", "ssl", "select", "selectors", "http", "urllib"), "nbd/ and qmp/ talk to peers"),
    **dict.fromkeys(("time", "datetime"), "let the caller pass the time in"),
    **dict.fromkeys(("random", "secrets", "uuid"), "let the caller pass the number in"),
    **dict.fromkeys(("logging", "warnings", "sys"), "return it in the value; the caller shows it"),
    "rich": "report to the monitor; cli/ draws",
}
IMPURE_CALLS = {
    **dict.fromkeys(("open", "fromfile", "tofile", "memmap"), VALUES),
    **dict.fromkeys(("print", "input"), "return it in the value; the caller shows it"),
    **dict.fromkeys(("exec", "eval", "__import__"), "write the code down"),
    "random": "let the caller pass the number in",
}

BINARY_SUFFIXES = {
    *(".gif", ".ico", ".jpeg", ".jpg", ".pdf", ".png", ".svg", ".webp"),
    *(".gz", ".img", ".iso", ".qcow2", ".raw", ".vdi", ".vhdx", ".vmdk", ".zip", ".zst"),
}
# What no text may hold. A letter in brackets keeps a pattern from finding itself.
UNWANTED_TEXT = (
    (r"\b(TO[D]O|FIX[M]E|XX[X])\b", "do it now, or open an issue"),
    (r"(?<![\w.~})])/(wor[k]|roo[t]|hom[e]|User[s]|far[m])/", "name no folder of one machine; use a relative path"),
    (r"pyp[i]\.org|pythonhoste[d]\.org|de[b]\.debian\.org|npm[j]s\.org|\bindex[-]url", "name no package registry"),
)
UNTESTED_NAMES = {"__init__", "__main__"}


class Rule(NamedTuple):
    """One thing that holds for every file whose path matches `where`; each (path, text) of `bad` breaks it."""

    name: str
    where: str
    find: Callable[[str, str], Iterator[str]]
    bad: tuple[tuple[str, str], ...]


@cache
def parse(text: str) -> ast.Module:
    """Parse a Python file once for all rules."""
    return ast.parse(text)


def functions(text: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method, the inner ones too."""
    for node in ast.walk(parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported_names(path: str, text: str) -> Iterator[str]:
    """Yield the full dotted name of all that a file imports, relative imports resolved."""
    folder = PurePosixPath(path.removeprefix("src/")).parent.parts
    for node in ast.walk(parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = folder[: len(folder) - node.level + 1] if node.level else ()
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def find_foreign_imports(path: str, text: str) -> Iterator[str]:
    """Find imports that `IMPORTS` does not allow this file."""
    allowed = next(names for pattern, names in IMPORTS if re.match(pattern, path))
    for name in imported_names(path, text):
        parts = name.split(".")
        prefixes = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
        if allowed.isdisjoint(prefixes):
            advice = next((INSTEAD[prefix] for prefix in prefixes if prefix in INSTEAD), "see IMPORTS in test_tidy.py")
            yield f"imports {name}; {advice}"


def called_name(call: ast.Call) -> str:
    """Return the last word of what is called: `fromfile` for `np.fromfile(...)`."""
    return ast.unparse(call.func).rpartition(".")[2]


def find_impure_calls(path: str, text: str) -> Iterator[str]:
    """Find calls that read, write, show or draw lots."""
    for node in ast.walk(parse(text)):
        if isinstance(node, ast.Call) and called_name(node) in IMPURE_CALLS:
            yield f"line {node.lineno}: calls {called_name(node)}; {IMPURE_CALLS[called_name(node)]}"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("np.random", "numpy.random"):
            yield f"line {node.lineno}: uses {ast.unparse(node)}; {IMPURE_CALLS['random']}"


def find_prints(path: str, text: str) -> Iterator[str]:
    """Find calls of print."""
    for node in ast.walk(parse(text)):
        if isinstance(node, ast.Call) and called_name(node) == "print":
            yield f"line {node.lineno}: calls print; report to the monitor, or write to the stream that cli/ gives"


def find_long_functions(path: str, text: str) -> Iterator[str]:
    """Find functions with too many lines of code; docstring, comments and empty lines are free."""
    lines = text.splitlines()
    for function in functions(text):
        body = function.body[1:] if ast.get_docstring(function) is not None else function.body
        signature = lines[function.lineno - 1 : function.body[0].lineno - 1]
        held = [*signature, *(lines[body[0].lineno - 1 : function.end_lineno] if body else [])]
        count = sum(1 for line in held if line.strip() and not line.strip().startswith("#"))
        if count > FUNCTION_LINE_COUNT_MAX:
            yield f"line {function.lineno}: {function.name} has {count} lines, above {FUNCTION_LINE_COUNT_MAX}"


def find_wide_functions(path: str, text: str) -> Iterator[str]:
    """Find functions with too many parameters; self and cls are free."""
    for function in functions(text):
        given = function.args
        named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        count = sum(1 for parameter in named if parameter and parameter.arg not in ("self", "cls"))
        if count > PARAMETER_COUNT_MAX:
            yield f"line {function.lineno}: {function.name} takes {count} parameters, above {PARAMETER_COUNT_MAX}"


def find_long_file(path: str, text: str) -> Iterator[str]:
    """Find a file that is too long to read."""
    count = len(text.splitlines())
    if count > FILE_LINE_COUNT_MAX:
        yield f"has {count} lines, above {FILE_LINE_COUNT_MAX}; split it by subject"


def find_long_lines(path: str, text: str) -> Iterator[str]:
    """Find lines that are too long to read."""
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > LINE_LENGTH_MAX:
            yield f"line {number}: has {len(line)} characters, above {LINE_LENGTH_MAX}"


def find_vague_name(path: str, text: str) -> Iterator[str]:
    """Find a module or folder whose name says nothing."""
    for part in PurePosixPath(path).with_suffix("").parts:
        if re.fullmatch(r"(test_)?(utils?|helpers?|managers?|common|base|misc)", part):
            yield f"is named {part}; name it after what it owns"


def find_missing_docstring(path: str, text: str) -> Iterator[str]:
    """Find a file that does not open with what it owns."""
    if ast.get_docstring(parse(text)) is None:
        yield "has no docstring; open it with what the file owns"


def find_skips(path: str, text: str) -> Iterator[str]:
    """Find tests that may be passed over."""
    for node in ast.walk(parse(text)):
        if isinstance(node, ast.Attribute):
            names = [node.attr] if ast.unparse(node).split(".")[0] in ("pytest", "mark", "unittest", "self") else []
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names] if node.module in ("pytest", "unittest") else []
        else:
            continue
        for name in names:
            if re.search("skip|xfail", name, re.IGNORECASE):
                yield f"line {node.lineno}: {name}; mend the test or take it out"


def find_unwanted_text(path: str, text: str) -> Iterator[str]:
    """Find what no file may hold."""
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, advice in UNWANTED_TEXT:
            if found := re.search(pattern, line):
                yield f"line {number}: {found[0]}; {advice}"


def find_binary(path: str, text: str) -> Iterator[str]:
    """Find pictures, disk images, archives and anything else that is not text."""
    if PurePosixPath(path).suffix in BINARY_SUFFIXES or "\0" in text or "\ufffd" in text:
        yield "is not text; make it when it is needed"


def find_untested_module(path: str, text: str, files: frozenset[str] | None = None) -> Iterator[str]:
    """Find a module of the package that no test file mirrors."""
    module = PurePosixPath(path).relative_to("src/cowtree")
    mirror = str("tests" / module.with_name(f"test_{module.name}"))
    if module.stem not in UNTESTED_NAMES and mirror not in (repository() if files is None else files):
        yield f"has no tests; write {mirror}"


ANY, PYTHON, SOURCE, TESTS = r".", r".*\.py$", r"src/.*\.py$", r"tests/.*\.py$"
BAD_IMPORTS = (
    ("src/cowtree/plan/a.py", "import os.path"),
    ("src/cowtree/plan/a.py", "from .. import storage"),
    ("src/cowtree/plan/a.py", "from cowtree.chain.view import View"),
    ("src/cowtree/qcow2/a.py", "from ..plan import pull"),
    ("src/cowtree/units.py", "import zstandard"),
    ("src/cowtree/web/a.py", "from rich.table import Table"),
)
BAD_CALLS = tuple(("src/cowtree/plan/a.py", text) for text in ("open('a')", "np.fromfile(a)", "np.random.seed"))
BAD_BODY = "def long():\n" + "    pass\n" * FUNCTION_LINE_COUNT_MAX
BAD_NAMES = (("src/cowtree/chain/utils.py", ""), ("src/cowtree/common/view.py", ""))
BAD_SKIPS = (("tests/a.py", "@mark.skipif(1)\ndef f(): pass"), ("tests/a.py", "from pytest import xfail"))
BAD_TEXTS = (
    ("a.md", "# TO" + "DO: more"),
    ("a.md", "see /" + "home/ann/disk"),
    ("a.txt", "--index" + "-url http://localhost/simple"),
)
RULES = (
    Rule("imports", SOURCE, find_foreign_imports, BAD_IMPORTS),
    Rule("purity", r"src/cowtree/(qcow2|luks|domain|plan)/.*\.py$", find_impure_calls, BAD_CALLS),
    Rule("only cli prints", r"src/cowtree/(?!cli/).*\.py$", find_prints, (("src/cowtree/chain/a.py", "print(1)"),)),
    Rule("functions are short", PYTHON, find_long_functions, (("a.py", BAD_BODY),)),
    Rule("functions are narrow", PYTHON, find_wide_functions, (("a.py", "def f(a, b, /, c, *d, e, **f): pass"),)),
    Rule("files are short", PYTHON, find_long_file, (("a.py", "\n" * (FILE_LINE_COUNT_MAX + 1)),)),
    Rule("lines are short", PYTHON, find_long_lines, (("a.py", "#" * (LINE_LENGTH_MAX + 1)),)),
    Rule("names tell", PYTHON, find_vague_name, BAD_NAMES),
    Rule("files open with what they own", PYTHON, find_missing_docstring, (("a.py", "a = 1"),)),
    Rule("no test is passed over", TESTS, find_skips, BAD_SKIPS),
    Rule("no unwanted text", ANY, find_unwanted_text, BAD_TEXTS),
    Rule("text only", ANY, find_binary, (("a.png", ""), ("a", "a\0b"))),
    Rule("each module has its tests", SOURCE, find_untested_module, (("src/cowtree/chain/none.py", ""),)),
)
by_name = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


@cache
def repository() -> frozenset[str]:
    """List the files that are or would be committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return frozenset(path for path in listed.split("\0") if path and (ROOT / path).is_file())


@cache
def read(path: str) -> str:
    """Read a file of the repository; what is not UTF-8 becomes U+FFFD."""
    return (ROOT / path).read_text(encoding="utf-8", errors="replace")


@by_name
def test_the_repository_holds(rule: Rule):
    paths = sorted(path for path in repository() if re.match(rule.where, path))
    found = [f"{path}: {sentence}" for path in paths for sentence in rule.find(path, read(path))]
    assert not found, "\n".join([rule.name, *found])


@by_name
def test_a_rule_can_fail(rule: Rule):
    for path, text in rule.bad:
        assert re.match(rule.where, path)
        assert list(rule.find(path, text)), text


def test_what_is_allowed_is_not_found():
    good = '"""Owns x."""\nimport zlib\nfrom . import pull\nfrom ..qcow2.header import Header\nimport numpy as np\n'
    assert list(imported_names("src/cowtree/plan/a.py", good)) == [
        *("zlib", "cowtree.plan.pull", "cowtree.qcow2.header.Header", "numpy")
    ]
    assert not list(find_foreign_imports("src/cowtree/plan/a.py", good))
    assert not list(find_wide_functions("a.py", "class A:\n    def f(self, a, b, c, d, e): pass"))
    assert not list(find_long_functions("a.py", 'def f():\n    """' + "a\n" * 50 + '    """\n' + "    # why\n" * 50))
    assert not list(find_untested_module("src/cowtree/chain/view.py", "", frozenset(["tests/chain/test_view.py"])))


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter, with the contracts of this repository, over the package below `folder`."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    command += ["--config", str(ROOT / "pyproject.toml")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_layers_hold():
    result = lint_imports(ROOT / "src")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("chain/upward.py", "from cowtree.images import merge"),
        ("plan/sideways.py", "import cowtree.chain"),
        ("units.py", "import cowtree.qcow2"),
        ("homeless.py", ""),
    ],
)
def test_the_layers_can_fail(tmp_path: Path, path: str, text: str):
    for folder in ("qcow2", "chain", "plan", "images"):
        (tmp_path / "cowtree" / folder).mkdir(parents=True)
    for module in ("", "qcow2/", "chain/", "plan/", "images/"):
        (tmp_path / "cowtree" / module / "__init__.py").touch()
    (tmp_path / "cowtree/images/merge.py").touch()
    assert lint_imports(tmp_path).returncode == 0
    (tmp_path / "cowtree" / path).write_text(text)
    assert lint_imports(tmp_path).returncode == 1


def test_the_tests_can_tell_a_missing_tool(tmp_path: Path):
    (tmp_path / "conftest.py").write_text(read("tests/conftest.py").replace("qemu-io", "no-such-tool"))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "the tests need no-such-tool. Try: apt-get install qemu-utils" in result.stderr
    assert shutil.which("no-such-tool") is None
