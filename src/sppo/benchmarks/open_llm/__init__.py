"""The Open LLM Leaderboard."""
