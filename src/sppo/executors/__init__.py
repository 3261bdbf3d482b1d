"""Places where the shards of a stage are computed and policies are trained, one file each."""
