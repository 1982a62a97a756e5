"""What the client, the engine and the manager agree on. Needs numpy alone, and imports none of them."""
