"""The words of `--diskspec` and `--memspec`, as virsh splits them: at commas, of which two stand for one."""

from cowtree.domain.definition import PATHS
from cowtree.domain.moment import DiskRequest, Memory
from cowtree.errors import WrongUse


def disk_spec(text: str) -> DiskRequest:
    """What `DISK[,snapshot=MODE][,driver=FORMAT][,stype=TYPE][,file=NAME]` asks for. Raises: WrongUse."""
    name, *parts = _split(text)
    said: dict[str, str] = {}
    for part in parts:
        key, _, value = part.partition("=")
        if key not in ("snapshot", "driver", "stype", "file") or not value or key in said:
            raise _broken("diskspec", text, part)
        said[key] = value
    if not name:
        raise _broken("diskspec", text, name)
    if said.get("stype", "file") not in PATHS:
        raise WrongUse(reason=f"Unknown storage type: '{said['stype']}'", hint="stype=file or stype=block")
    return DiskRequest(name, said.get("snapshot"), said.get("file"), said.get("driver"), said.get("stype"))


def memory_spec(text: str) -> Memory:
    """What `[file=]NAME[,snapshot=MODE]` asks for. Raises: WrongUse."""
    said: dict[str, str] = {}
    for part in _split(text):
        key, _, value = ("file", "", part) if part.startswith("/") else part.partition("=")
        if key not in ("snapshot", "file") or not value or key in said:
            raise _broken("memspec", text, part)
        said[key] = value
    return Memory(said.get("snapshot"), said.get("file"))


# What each of the two may say, for a hint.
_FORMS = {
    "diskspec": "--diskspec DISK,snapshot=external,file=/FOLDER/NAME,driver=FORMAT; a comma in a name is written twice",
    "memspec": "--memspec file=/FOLDER/NAME,snapshot=external; a comma in a name is written twice",
}


def _broken(kind: str, text: str, part: str) -> WrongUse:
    blame = f": '{part}' is not understood" if part != text else ""
    return WrongUse(reason=f"unable to parse {kind}: {text}{blame}", hint=_FORMS[kind])


def _split(text: str) -> list[str]:
    # No argument of a program can hold a zero byte.
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]
