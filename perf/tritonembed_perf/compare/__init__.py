"""`tritonembed-bench compare`: this project and the systems people would use instead, on one machine, in one run."""
