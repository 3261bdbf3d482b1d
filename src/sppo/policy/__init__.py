"""Policies as folders: found, checked, hashed, loaded, adapted, exported; and the chat format that they share."""

from sppo.policy.library_messages import hide_needless

# Whatever reads texts or weights imports a module of this package first.
hide_needless()
