"""Where every call of the command begins: picks the verb, and turns whatever goes wrong into one sentence.

`cowtree img` is parsed by `cli/img`, in qemu-img's grammar; the other verbs by `cli/verbs`. Each half is imported only
when it is called, for start-up is most of what a short command costs.
"""

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from cowtree.errors import CowtreeError

QEMU_IMG = "qemu-img"
INTERRUPTED_STATUS = 130
# What a shell reports of a program that SIGPIPE ended.
BROKEN_PIPE_STATUS = 141


def main(words: Sequence[str] | None = None) -> int:
    """Run one command. `words` are the program's name and its arguments. Returns: the exit status."""
    _prepare_streams()
    # Nothing here multiplies matrices; the threads that numpy's library starts for it would double its start-up.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    name, *rest = sys.argv if words is None else words
    if os.path.basename(name) == QEMU_IMG:
        return _guard(QEMU_IMG, lambda: _img(rest, QEMU_IMG))
    if rest[:1] == ["img"]:
        return _guard("cowtree img", lambda: _img(rest[1:], "cowtree img"))
    return _guard("cowtree", lambda: _verbs(rest))


def _img(words: list[str], program: str) -> int:
    from cowtree.cli.img.main import run  # noqa: PLC0415

    return run(words, program)


def _verbs(words: list[str]) -> int:
    from cowtree.cli.verbs import run  # noqa: PLC0415

    return run(words)


def _prepare_streams() -> None:
    """Let any file name be printed, and let nothing that is printed go into an image when a stream is closed."""
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()
    if isinstance(sys.stdout, io.TextIOWrapper):
        is_utf8 = sys.stdout.encoding.lower() in ("utf-8", "utf8")
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")


def _nowhere() -> io.TextIOWrapper:
    return open(os.devnull, "w", encoding="utf-8")


def _guard(program: str, act: Callable[[], int]) -> int:
    """Run an act; every failure becomes a sentence on standard error and an exit status."""
    interrupts = _note_interrupts()
    try:
        status = act()
        sys.stdout.flush()
    except CowtreeError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt as error:
        return _say_interrupted(program, *error.args)
    except BrokenPipeError:
        _forget_output()
        return BROKEN_PIPE_STATUS
    except OSError as error:
        _forget_output()
        print(f"{program}: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return CowtreeError.exit_status
    except Exception:
        # A library written in C that is just being loaded makes an error of its own out of Ctrl-C.
        if not interrupts:
            raise
        return _say_interrupted(program)
    return status


def _note_interrupts() -> list[int]:
    """Let Ctrl-C do what it always does. Returns: a list that grows with each one."""
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, note)
    return pressed


def _say_interrupted(program: str, told: str = "interrupted; run the same command again to complete it") -> int:
    print(f"\n{program}: {told}", file=sys.stderr)
    return INTERRUPTED_STATUS


def _forget_output() -> None:
    """Drop what could not be printed. Python would complain once more when it closes standard output at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
