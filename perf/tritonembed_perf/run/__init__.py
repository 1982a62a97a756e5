"""`tritonembed-bench run`: one server under one load, measured and checked."""
