"""What bears the mark of the emulated processor: traces that no mistake of a driver can leave.

Used on both sides: in the guest on VirtualBox's logs, on the host on the text of failures.
"""

from __future__ import annotations

import re

_MARKS = {
    "guru meditation": re.compile(r"guru[ _]?meditation", re.IGNORECASE),
    "triple fault": re.compile(r"VINF_EM_TRIPLE_FAULT|Triple fault", re.IGNORECASE),
    "machine stuck": re.compile(r"MachineState[._]Stuck|\bstate Stuck\b|is stuck\b"),
    # After a minute in which the machine's processor did not run.
    "virtual clock lost": re.compile(r"TM: Giving up catch-up attempt"),
    "invalid state for SVM": re.compile(r"VERR_SVM_\w+"),
}


def marks_in(text: str) -> set[str]:
    """The names of the marks that ``text`` bears."""
    return {name for name, pattern in _MARKS.items() if pattern.search(text)}
