"""Constitutions from and to the formats of other projects.

An import names whatever it leaves out, derives or changes in a note; a faulty file is refused with all its
faults. An export, imported again, gives back every wording that its format can hold.
"""

from solon.exchange.drafts import FORMATS
from solon.exchange.exporting import export_constitution
from solon.exchange.importing import import_constitution

__all__ = ["FORMATS", "export_constitution", "import_constitution"]
