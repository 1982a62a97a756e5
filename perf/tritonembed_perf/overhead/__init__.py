"""`tritonembed-bench overhead`: where the time of a request goes."""
