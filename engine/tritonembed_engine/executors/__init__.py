"""The executors: `direct` (the forward, flat), `scheduler` (vLLM's API), `transformers` (Hugging Face's models)."""
