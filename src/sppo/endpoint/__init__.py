"""OpenAI-compatible servers: the one client of them, and the cache of what they answered."""
