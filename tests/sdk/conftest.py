from __future__ import annotations

from pathlib import Path

SEED_PAGE = Path(__file__).parents[2] / ".." / "shared" / "seed-workflows.md"
collect_ignore = [] if SEED_PAGE.is_file() else ["test_seed_page.py"]
