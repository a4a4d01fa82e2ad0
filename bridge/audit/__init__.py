"""What an auditor checks with keys of his own: a result, a bundle, a log. No site is needed."""
