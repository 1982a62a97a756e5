"""The engine's side of Triton's python backend. Imports neither torch nor vLLM."""
