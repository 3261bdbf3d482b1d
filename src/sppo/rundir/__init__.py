"""The folder of a run: its stages on disk, the tables between them, remote storage, the summary and the guard."""
