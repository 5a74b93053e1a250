"""An engine behind HTTP: the protocols of OpenAI and Anthropic, metrics, and a page to look at."""
