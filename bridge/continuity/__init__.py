"""A site that outlives its disk, its keys and its log: copies, restores, new keys, a new origin."""
