"""One endpoint over many Triton servers: `tritonembed-manager serve`."""
