"""Which process this is to the group.

A supervisor names each of its places, and whichever child is in a place goes by that name; any other process makes one
up. Two processes under one name never live at the same time.
"""

from __future__ import annotations

import os
import uuid

PLACE = "AGNT5_CLI_PLACE"
"""The variable a supervisor passes the name in. Not a setting: gone before the settings look for unknown variables."""

name = os.environ.pop(PLACE, "") or uuid.uuid4().hex[:12]
