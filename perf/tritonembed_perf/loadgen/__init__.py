"""What the load generator of `tritonembed_manager.tune` is given here: protocols, texts, and checks of every answer."""
