"""Generated from proto/xds.proto by `make proto`."""
