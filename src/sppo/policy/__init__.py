"""Policies as folders: found, checked, hashed, loaded, adapted, exported; and the chat format that they share."""
