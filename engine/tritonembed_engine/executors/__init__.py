"""The two ways to run a model: `direct` (the model's forward over a flat batch) and `scheduler` (vLLM's public API)."""
