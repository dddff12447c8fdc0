"""`cowtree tree` as people and programs see it: drawings, JSON, sentences and exit status."""

import json
import os
import pty
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cowtree import errors
from cowtree.cli.main import main
from cowtree.cli.tree import printable
from cowtree.units import format_size
from tests.cli.img.differential import held
from tests.families import overwrite, stamp
from tests.qemu import qemu_img

COMMAND = [sys.executable, "-m", "cowtree", "tree"]


def tree(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [*COMMAND, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def shown(*words: str | Path, **environment: str) -> list[str]:
    """The lines of a drawing of images that are all well."""
    result = tree(*words, **environment)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def image(path: Path, *more: str, size: str = "1M") -> Path:
    """An empty image."""
    qemu_img("create", "-q", "-f", "qcow2", "-u", *more, path, size)
    return path


def own(path: Path) -> str:
    """What a file takes on disk, as the drawing shows it."""
    return f"{format_size(path.stat().st_blocks * 512):>7}"


def test_figure_2_is_drawn(tmp_path: Path):
    qemu_img("create", "-q", "-f", "raw", tmp_path / "RootBase.img", "1G")
    for name, base in (("1", "RootBase.img"), ("1A", "1"), ("1B", "1A"), ("1C", "1B")):
        figure(tmp_path, name, base)
    for name, base in (("2", "RootBase.img"), ("2A", "2"), ("3", "RootBase.img"), ("3A", "3")):
        figure(tmp_path, name, base)
    sizes = {path.stem.removeprefix("Overlay-"): own(path) for path in tmp_path.iterdir()}
    assert shown(tmp_path) == [
        f"In {tmp_path}:",
        "image                             format   size  on disk",
        f"RootBase.img                      raw     1 GiB  {sizes['RootBase']}",
        f"├── Overlay-1.qcow2               qcow2   1 GiB  {sizes['1']}",
        f"│   └── Overlay-1A.qcow2          qcow2   1 GiB  {sizes['1A']}",
        f"│       └── Overlay-1B.qcow2      qcow2   1 GiB  {sizes['1B']}",
        f"│           └── Overlay-1C.qcow2  qcow2   1 GiB  {sizes['1C']}  leaf",
        f"├── Overlay-2.qcow2               qcow2   1 GiB  {sizes['2']}",
        f"│   └── Overlay-2A.qcow2          qcow2   1 GiB  {sizes['2A']}  leaf",
        f"└── Overlay-3.qcow2               qcow2   1 GiB  {sizes['3']}",
        f"    └── Overlay-3A.qcow2          qcow2   1 GiB  {sizes['3A']}  leaf",
        "",
        f"9 images, 3 leaves. Looked in {tmp_path} and below.",
    ]


def figure(folder: Path, name: str, base: str) -> None:
    """One overlay of the figure."""
    backing, image_format = (base, "raw") if base.endswith(".img") else (f"Overlay-{base}.qcow2", "qcow2")
    path = folder / f"Overlay-{name}.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", backing, "-F", image_format, path)


def test_around_an_image_the_family_is_drawn_and_where_it_was_looked_for_is_said(tmp_path: Path):
    for name in ("bases", "tops"):
        (tmp_path / name).mkdir()
    image(tmp_path / "bases/base.qcow2")
    image(tmp_path / "bases/stranger.qcow2")
    top = image(tmp_path / "tops/top.qcow2", "-b", "../bases/base.qcow2", "-F", "qcow2")
    lines = shown(top)
    assert lines[0] == f"In {tmp_path}:"
    assert [line.split()[0] for line in lines[2:4]] == ["bases/base.qcow2", "└──"]
    assert lines[-1] == f"2 images, 1 leaf. Looked in {tmp_path}/bases, {tmp_path}/tops."


def test_without_a_path_the_folder_of_the_caller_is_drawn(tmp_path: Path):
    image(tmp_path / "a.qcow2")
    result = subprocess.run(COMMAND, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.splitlines()[2].startswith("a.qcow2  ")


def test_what_lies_elsewhere_is_drawn_with_its_whole_path(tmp_path: Path):
    for name in ("bases", "tops"):
        (tmp_path / name).mkdir()
    image(tmp_path / "bases/base.qcow2")
    image(tmp_path / "tops/top.qcow2", "-b", "../bases/base.qcow2", "-F", "qcow2")
    assert shown(tmp_path / "tops")[2].startswith(f"{tmp_path}/bases/base.qcow2  ")


def test_a_file_of_the_kernel_has_no_family_to_look_for():
    result = tree("/proc/version")
    assert (result.returncode, result.stderr) == (0, "cowtree: not looked into /proc: not a folder of files\n")
    assert result.stdout.splitlines()[-1] == "1 image, 1 leaf. Looked in no folder."


def test_the_json_names_each_image_its_parent_and_its_state(tmp_path: Path):
    (tmp_path / "base.img").write_bytes(bytes(1024))
    image(tmp_path / "a.qcow2", "-b", "base.img", "-F", "raw")
    image(tmp_path / "b.qcow2", "-b", "gone.qcow2", "-F", "qcow2")
    (tmp_path / "link").symlink_to("a.qcow2")
    result = tree("--output=json", tmp_path)
    found = json.loads(result.stdout)
    assert list(found) == ["images", "looked-into", "not-looked-into"]
    assert [each["path"] for each in found["images"]] == [
        f"{tmp_path}/{name}" for name in ("base.img", "a.qcow2", "gone.qcow2", "b.qcow2")
    ]
    assert found["images"][1] == {
        "path": f"{tmp_path}/a.qcow2",
        "other-names": [f"{tmp_path}/link"],
        "format": "qcow2",
        "virtual-size": 1 << 20,
        "actual-size": (tmp_path / "a.qcow2").stat().st_blocks * 512,
        "backing-filename": "base.img",
        "backing-filename-format": "raw",
        "parent": f"{tmp_path}/base.img",
        "leaf": True,
        "whole": True,
        "problem": None,
        "in-use": None,
        "notes": ["base ends at 1 KiB"],
    }
    assert (found["images"][3]["parent"], found["images"][3]["whole"]) == (f"{tmp_path}/gone.qcow2", False)
    problem = found["images"][2]["problem"]
    assert (problem["class"], problem["exit-status"]) == ("MissingImage", result.returncode)
    assert f"cowtree: {problem['message']}. Try: {problem['advice']}\n" == result.stderr
    assert found["looked-into"] == [{"folder": str(tmp_path), "below": True}]
    assert found["not-looked-into"] == []


@pytest.mark.parametrize(
    ("offset", "data", "wanted", "word"),
    [
        (4, b"\0\0\0\x09", errors.BrokenHeader, "broken header"),
        (72, b"\x80", errors.UnknownFeature, "unknown feature"),
        (48, b"\0\0\0\0\xff", errors.TruncatedImage, "cut short"),
        (79, b"\x02", errors.MarkedCorrupt, "marked corrupt"),
        (0, bytes(512), errors.NotAnImage, "base is not qcow2"),
    ],
)
def test_damage_is_drawn_told_once_and_makes_the_exit_status(
    tmp_path: Path, offset: int, data: bytes, wanted: type[errors.CowtreeError], word: str
):
    base = image(tmp_path / "base.qcow2")
    image(tmp_path / "top.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    overwrite(base, offset, data)
    before = base.read_bytes()
    result = tree(tmp_path)
    assert result.returncode == wanted.exit_status
    (sentence,) = result.stderr.splitlines()
    assert sentence.startswith(f"cowtree: {base}: ")
    assert ". Try: " in sentence
    assert any(word in line for line in result.stdout.splitlines())
    assert "└── top.qcow2" in result.stdout
    assert "1 broken" in result.stdout
    assert base.read_bytes() == before


def test_a_missing_base_is_drawn_and_told(tmp_path: Path):
    image(tmp_path / "top.qcow2", "-b", "gone.qcow2", "-F", "qcow2")
    result = tree(tmp_path)
    assert result.returncode == errors.MissingImage.exit_status
    assert [line.split() for line in result.stdout.splitlines()[2:4]] == [
        ["gone.qcow2", "-", "-", "-", "missing"],
        [
            "└──",
            "top.qcow2",
            "qcow2",
            "1",
            "MiB",
            *own(tmp_path / "top.qcow2").split(),
            *["leaf", "of", "a", "broken", "chain"],
        ],
    ]
    assert f"rebase -u -b BASE -F FORMAT {tmp_path}/top.qcow2" in result.stderr


def test_a_loop_is_drawn_and_told(tmp_path: Path):
    image(tmp_path / "a.qcow2", "-b", "b.qcow2", "-F", "qcow2")
    image(tmp_path / "b.qcow2", "-b", "a.qcow2", "-F", "qcow2")
    result = tree(tmp_path / "b.qcow2")
    assert result.returncode == errors.LoopInChain.exit_status
    assert len(result.stderr.splitlines()) == 1
    assert [line.split()[0] for line in result.stdout.splitlines()[2:4]] == ["a.qcow2", "└──"]


def test_a_chain_of_300_is_drawn_within_bounds_and_told_once(tmp_path: Path):
    stamp(tmp_path, [None, *range(299)])
    result = tree(tmp_path)
    assert result.returncode == errors.ChainTooDeep.exit_status
    assert len(result.stderr.splitlines()) == 1
    lines = result.stdout.splitlines()
    assert max(map(len, lines[2:-1])) < 160
    assert lines[2 + 299].startswith("(299) ")
    # All names from there on stand in one column.
    assert len({line.index("image-") for line in lines[2 + 16 : 2 + 300]}) == 1


def test_a_branch_of_a_deep_chain_is_drawn_past_what_hangs_on_its_sibling(tmp_path: Path):
    stamp(tmp_path, [None, *range(19), 10])
    lines = shown(tmp_path)[2:23]
    column = 10 * 4
    assert [line[column] for line in lines[10:]] == ["i", "├", *"││││││││", "└"]
    assert [line.split()[0] for line in lines[16:20]] == ["│", "(17)", "(18)", "(19)"]


def test_a_path_that_is_not_there_is_an_error(tmp_path: Path):
    result = tree(tmp_path / "gone\x1b[31m")
    assert (result.returncode, result.stdout) == (errors.MissingImage.exit_status, "")
    assert result.stderr.startswith(f"cowtree: {tmp_path}/gone\\x1b[31m: No such file or directory. Try: ")


@pytest.mark.parametrize("output", ["human", "json"])
def test_a_folder_without_images_is_told(tmp_path: Path, output: str):
    (tmp_path / "notes.txt").write_text("nothing")
    result = tree(f"--output={output}", tmp_path)
    assert result.returncode == 1
    assert result.stderr == f"cowtree: no image found in {tmp_path} and below\n"
    assert result.stdout == "" if output == "human" else json.loads(result.stdout)["images"] == []


def test_what_was_not_looked_into_is_told(tmp_path: Path):
    image(tmp_path / "a.qcow2")
    for number in range(12):
        (tmp_path / f"link-{number}").symlink_to(".")
    result = tree(tmp_path)
    assert result.returncode == 0
    lines = result.stderr.splitlines()
    assert len(lines) == 11
    assert all(line.startswith(f"cowtree: not looked into {tmp_path}/link-") for line in lines[:10])
    assert "2 more places" in lines[10]


def test_a_search_that_went_not_far_enough_is_not_all_well(tmp_path: Path):
    image(tmp_path / "a.qcow2")
    deep = tmp_path
    for _ in range(66):
        deep /= "d"
    deep.mkdir(parents=True)
    result = tree(tmp_path)
    assert result.returncode == 1
    assert "folders deep" in result.stderr


def test_no_control_character_of_a_name_is_printed(tmp_path: Path):
    names = ["new\nline.qcow2", "\x1b]0;title\x07.qcow2", "\x9b31m.qcow2", "\u202eltr.qcow2", "back\\slash.qcow2"]
    for name in names:
        image(tmp_path / name)
    image(Path(os.fsdecode(bytes(tmp_path) + b"/byte-\xff.qcow2")))
    evil = image(tmp_path / "evil.qcow2", "-b", "gone\x1b[2J\n.img", "-F", "raw")
    image(tmp_path / "worse.qcow2", "-b", "back\\slash.qcow2", "-F", "raw")
    for path in (evil, tmp_path / "worse.qcow2"):
        path.write_bytes(path.read_bytes().replace(b"\0\0\0\3raw", b"\0\0\0\3\x1b[m"))
    result = tree(tmp_path)
    printed = result.stdout + result.stderr
    assert all(sign.isprintable() or sign == "\n" for sign in printed)
    for name in (
        "new\\nline",
        "\\x1b]0;title\\x07",
        "\\x9b31m",
        "\\u202eltr",
        "back\\\\slash",
        "byte-\\xff",
        "gone\\x1b[2J\\n",
        "format '\\x1b[m'",
    ):
        assert name in printed, name
    assert len(result.stdout.splitlines()) == 2 + len(names) + 4 + 2
    assert len(json.loads(tree("--output=json", tmp_path).stdout)["images"]) == len(names) + 4


def test_wide_names_keep_the_columns_aligned(tmp_path: Path):
    image(tmp_path / "日本語.qcow2")
    image(tmp_path / "e\u0301.qcow2")
    image(tmp_path / "long enough.qcow2")
    e, long, japanese = shown(tmp_path)[2:5]
    assert e.startswith("e\u0301.qcow2" + " " * 12 + "qcow2 ")
    assert long.startswith("long enough.qcow2" + " " * 2 + "qcow2 ")
    assert japanese.startswith("日本語.qcow2" + " " * 7 + "qcow2 ")


def test_signs_that_the_output_cannot_take_are_replaced(tmp_path: Path):
    image(tmp_path / "base.qcow2")
    image(tmp_path / "é.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    image(tmp_path / "f.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    lines = shown(tmp_path, PYTHONIOENCODING="ascii")
    assert lines[3].startswith("|-- f.qcow2")
    assert lines[4].startswith("`-- \\xe9.qcow2")


def on_a_terminal(*words: str | Path, **environment: str) -> str:
    """What the command writes to a terminal."""
    main, side = pty.openpty()
    command = [*COMMAND, *map(str, words)]
    with subprocess.Popen(command, stdout=side, stderr=subprocess.DEVNULL, env={**os.environ, **environment}):
        os.close(side)
        parts = []
        while part := _read(main):
            parts.append(part)
    os.close(main)
    return b"".join(parts).decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        # Linux says so when the last writer has gone.
        return b""


def test_colours_are_for_terminals(tmp_path: Path):
    image(tmp_path / "top.qcow2", "-b", "gone.qcow2", "-F", "qcow2")
    plain = tree(tmp_path).stdout
    assert "\x1b" not in plain
    coloured = on_a_terminal(tmp_path, TERM="xterm", NO_COLOR="")
    assert "\x1b[31m" in coloured
    for environment in ({"NO_COLOR": "1", "TERM": "xterm"}, {"TERM": "dumb"}):
        assert on_a_terminal(tmp_path, **environment).replace("\r\n", "\n") == plain


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path):
    stamp(tmp_path, [None] * 2000)
    with subprocess.Popen(
        [*COMMAND, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout
        assert command.stderr
        command.stdout.readline()
        command.stdout.close()
        assert command.stderr.read() == ""


def test_numpy_is_not_needed(tmp_path: Path):
    image(tmp_path / "a.qcow2")
    program = "import sys; from cowtree.cli.main import main; main(sys.argv); print('numpy' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program, "tree", tmp_path], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "False"


@pytest.mark.soak
def test_no_header_whatever_it_says_stops_the_drawing(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]):
    choose = random.Random(seed)
    for path in stamp(tmp_path, [None, *(choose.randrange(number) for number in range(1, 30))]):
        for _ in range(choose.randint(0, 4)):
            overwrite(path, choose.randrange(620), choose.randbytes(choose.choice([1, 1, 2, 8, 40])))
    for output in ("human", "json"):
        status = main(["cowtree", "tree", f"--output={output}", str(tmp_path)])
        shown = capsys.readouterr()
        assert (status == 0) == (shown.err == "")
        assert all(sign.isprintable() or sign == "\n" for sign in shown.out + shown.err)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain name.qcow2", "plain name.qcow2"),
        ("a\tb\x00c\x7f", "a\\tb\\x00c\\x7f"),
        ("\\x1b", "\\\\x1b"),
        ("日本", "日本"),
        ("\udcff\ud800", "\\xff\\ud800"),
        ("\u2028\u200b\xa0", "\\u2028\\u200b\\xa0"),
    ],
)
def test_a_text_is_printable_and_says_what_it_was(text: str, wanted: str):
    assert printable(text) == wanted


def test_a_text_is_printable_in_the_encoding_of_the_output():
    assert printable("é日", "ascii") == "\\xe9\\u65e5"
    assert printable("é日", "latin-1") == "é\\u65e5"


def test_images_in_use_are_drawn_as_such(tmp_path: Path):
    base = image(tmp_path / "base.qcow2")
    top = image(tmp_path / "top.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    with held(top):
        lines = shown(tmp_path)
        found = json.loads(tree("--output=json", tmp_path).stdout)
    assert [line.split("  ")[-1] for line in lines[2:4]] == ["in use, read", "leaf, in use, written"]
    assert [(each["path"], each["in-use"]) for each in found["images"]] == [(str(base), "read"), (str(top), "written")]
    assert "in use" not in "".join(shown(tmp_path))
