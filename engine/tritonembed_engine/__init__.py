"""The code of Triton's python models: tokenizing, batching and the vLLM executors. Imports without Triton."""
