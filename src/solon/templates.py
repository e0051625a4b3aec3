"""Prompt texts live in files and are filled in one pass.

One pass means that a slot's value is never searched for slots again: a model's output that happens to
hold `{question}` stays as it is. A missing or an extra slot is an error of the caller.
"""

import re
from functools import cache

from solon import shipped

_SLOT = re.compile(r"\{(\w+)\}")


@cache
def _template(name: str) -> str:
    return (shipped.DATA / "templates" / f"{name}.txt").read_text(encoding="utf-8").strip()


def fill(name: str, **slots: str) -> str:
    """The template `name` with every slot replaced.

    Raises:
        KeyError: a slot of the template was not given, or one was given that it does not have.
    """
    template = _template(name)
    wanted = set(_SLOT.findall(template))
    if wanted != set(slots):
        raise KeyError(f"template {name} has the slots {sorted(wanted)}, got {sorted(slots)}")
    return _SLOT.sub(lambda match: slots[match.group(1)], template)
