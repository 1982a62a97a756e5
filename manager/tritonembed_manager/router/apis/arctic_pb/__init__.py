"""Generated from proto/arctic_inference.proto by `make proto`."""
