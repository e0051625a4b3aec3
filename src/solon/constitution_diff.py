"""What differs between two constitutions, principle by principle."""

from collections.abc import Iterator
from dataclasses import dataclass

from solon.constitution import Constitution, Principle

_FIELDS = ("about", "critique", "revision", "question", "weight", "purpose", "asked_on")


@dataclass(frozen=True)
class Reworded:
    """A principle that both have; `fields` are those that differ."""

    old: Principle
    new: Principle
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Differences:
    """Ids that only one has, principles that differ, and worked examples that were added or removed."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    reworded: tuple[Reworded, ...]
    comparisons: tuple[int, int]
    revisions: tuple[int, int]

    def lines(self) -> Iterator[str]:
        """In words, a line each."""
        yield from (f"+ {name}" for name in self.added)
        yield from (f"- {name}" for name in self.removed)
        for one in self.reworded:
            for field in one.fields:
                yield f"~ {one.old.id} {field}:"
                yield f"    - {getattr(one.old, field)}"
                yield f"    + {getattr(one.new, field)}"
        for what, (plus, minus) in (("comparisons", self.comparisons), ("revisions", self.revisions)):
            if plus or minus:
                yield f"worked {what}: {plus} added, {minus} removed"
        if not (self.added or self.removed or self.reworded or any((*self.comparisons, *self.revisions))):
            yield "no difference"


def differences(old: Constitution, new: Constitution) -> Differences:
    """What has to be done to `old` to get `new`; the order of principles does not count."""
    before, after = ({p.id: p for p in c.principles} for c in (old, new))
    both = [(before[name], after[name]) for name in before if name in after]
    reworded = [
        Reworded(a, b, tuple(f for f in _FIELDS if getattr(a, f) != getattr(b, f))) for a, b in both if a != b
    ]
    return Differences(
        tuple(name for name in after if name not in before),
        tuple(name for name in before if name not in after),
        tuple(reworded),
        _counts(old.demonstrations.comparisons, new.demonstrations.comparisons),
        _counts(old.demonstrations.revisions, new.demonstrations.revisions),
    )


def _counts(old: tuple[object, ...], new: tuple[object, ...]) -> tuple[int, int]:
    return len([x for x in new if x not in old]), len([x for x in old if x not in new])
