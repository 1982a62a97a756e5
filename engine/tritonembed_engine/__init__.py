"""What Triton's python models run: tokenizing, batching and the vLLM executors. Importable without Triton."""
