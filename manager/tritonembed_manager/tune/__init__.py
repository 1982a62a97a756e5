"""`tritonembed-manager tune`: the best settings of a rendered repository, found by measuring."""
