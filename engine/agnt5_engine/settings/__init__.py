"""Every setting of the engine: from the environment (AGNT5_*), `.env`, then `agnt5.toml`, checked at start.

`load_settings` is the way in; it names what is wrong.
"""

from agnt5_engine.settings.addresses import is_loopback
from agnt5_engine.settings.loading import load_settings
from agnt5_engine.settings.model import DEFAULT_DIR, Settings
from agnt5_engine.settings.sources import COLLECTED, PREFIX, SettingsError

__all__ = ["COLLECTED", "DEFAULT_DIR", "PREFIX", "Settings", "SettingsError", "is_loopback", "load_settings"]
