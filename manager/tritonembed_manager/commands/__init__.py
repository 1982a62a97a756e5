"""The commands of `tritonembed-manager`: their options, and what they resolve to."""
