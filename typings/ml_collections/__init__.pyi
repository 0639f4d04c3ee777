"""For pyright alone. The library types an entry of a ConfigDict as any of seven types, so that each use is an error."""

from ml_collections.config_dict import ConfigDict as ConfigDict
