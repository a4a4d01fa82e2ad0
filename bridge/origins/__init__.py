"""A site's logs: the keys that sign them, those that ended, what others have seen of them."""
