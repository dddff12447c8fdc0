"""QEMU's lists of options: `key=value,key=value`. Two commas stand for one inside a value."""

from cowtree.errors import WrongUse


def parse_pairs(text: str, implied: str = "") -> dict[str, str]:
    """The keys and values of a list; the last of two equal keys counts. A key alone means `on`, and `off` when it
    begins with `no`, which is then no part of it; the first part may be the value of the key that is `implied`. An
    `id` names the list itself and is left out.
    """
    found: dict[str, str] = {}
    for index, part in enumerate(_split(text)):
        key, is_assigned, value = part.partition("=")
        if not is_assigned and implied and not index:
            key, value = implied, part
        elif not is_assigned:
            key, value = (key[2:], "off") if key.startswith("no") else (key, "on")
        if key != "id":
            found.pop(key, None)
            found[key] = value
    return found


def wants_help(text: str) -> bool:
    """Whether a list asks for help in place of saying something."""
    return any(part in ("help", "?") for part in _split(text))


def join_lists(texts: list[str]) -> str:
    """One list out of several.
    Raises: WrongUse for one that would change its meaning: an empty one, or one with a comma at an end.
    """
    for text in texts:
        comma_count = len(text) - len(text.rstrip(","))
        if not text or text[0] == "," or comma_count % 2:
            raise WrongUse(reason=f"Invalid option list: {text}")
    return ",".join(texts)


def _split(text: str) -> list[str]:
    """Split at single commas; each pair of commas becomes one."""
    # A sign that no argument of a program can hold keeps the doubled commas apart from the others.
    parts = text.replace(",,", "\0").split(",")
    return [part.replace("\0", ",") for part in parts if part]


def parse_switch(key: str, value: str) -> bool:
    """Read `on` or `off`, as QEMU spells it. Raises: WrongUse."""
    if value in ("on", "yes", "true", "y"):
        return True
    if value in ("off", "no", "false", "n"):
        return False
    raise WrongUse(reason=f"Parameter '{key}' expects 'on' or 'off'")
