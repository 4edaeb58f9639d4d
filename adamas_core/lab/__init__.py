"""The lab: what a choice of tokens costs in quality, for this library and for other methods."""
