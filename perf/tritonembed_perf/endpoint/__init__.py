"""What the manager's endpoint costs and gives: the hop, its policies, and what happens when a server dies."""
