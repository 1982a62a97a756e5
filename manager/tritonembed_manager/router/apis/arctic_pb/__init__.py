"""Generated from protos/arctic_inference.proto by `make proto`."""
