"""`sppo arena`: people compare policies blind, on a page that this machine serves."""
