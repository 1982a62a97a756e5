"""What the manager answers over HTTP: OpenAI's and KServe's APIs, metrics, and the status page."""
