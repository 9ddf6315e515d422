"""When Python looks for garbage in a process that works on many runs."""

from __future__ import annotations

import gc


def collect_seldom() -> None:
    """Once everything is imported: never look at that again, and at the rest less often.

    A loaded processor holds many thousand small objects for as long as their runs live, and runs leave no reference
    cycles behind. With the default thresholds the collector would go through all of them many times a second."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    gc.enable()
